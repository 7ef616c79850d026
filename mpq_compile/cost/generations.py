"""What a database holds by device, toolchain and kernels: what is current and what is stale.

Stale rows were measured with another toolchain or other kernels. They are never used, because both
are parts of a key, and never deleted unless somebody asks for it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from mpq_compile.cost.measurement import INDEPENDENT

_GENERATION = "device, toolchain, kernels"
_STALE = f"""
    NOT (toolchain = :toolchain AND kernels = :kernels) AND toolchain != '{INDEPENDENT}'"""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Rows of one device, toolchain and set of kernels.

    Args:
        device, toolchain, kernels: As in ``MeasurementKey``.
        measurements, samples: How many there are.
        newest: When the latest measurement ended; empty where there are samples alone.
    """

    device: str
    toolchain: str
    kernels: str
    measurements: int
    samples: int
    newest: str

    def is_current(self, toolchain: str, kernels: str) -> bool:
        """Tell whether this installation uses the rows."""
        used = (self.toolchain, self.kernels) == (toolchain, kernels)
        return used or self.toolchain == INDEPENDENT


def generations(db: sqlite3.Connection) -> list[Generation]:
    """Return what the database holds, sorted by device, then by age."""
    query = f"""
    SELECT {_GENERATION}, sum(measurements), sum(samples), max(newest) FROM (
        SELECT {_GENERATION}, count(*) AS measurements, 0 AS samples, max(time) AS newest
        FROM measurements GROUP BY {_GENERATION}
        UNION ALL
        SELECT {_GENERATION}, 0, count(*), '' FROM samples JOIN series ON series = series.id
        GROUP BY {_GENERATION}
    ) GROUP BY {_GENERATION} ORDER BY device, max(newest), toolchain, kernels"""
    return [
        Generation(
            device=device,
            toolchain=toolchain,
            kernels=kernels,
            measurements=measurements,
            samples=samples,
            newest=newest,
        )
        for device, toolchain, kernels, measurements, samples, newest in db.execute(query)
    ]


def prune_stale(db: sqlite3.Connection, toolchain: str, kernels: str) -> list[Generation]:
    """Delete what this toolchain and these kernels do not use; return what was deleted."""
    stale = [g for g in generations(db) if not g.is_current(toolchain, kernels)]
    wanted = {"toolchain": toolchain, "kernels": kernels}
    of_stale_series = f"(SELECT id FROM series WHERE {_STALE})"
    for table, rows in (
        ("samples", f"series IN {of_stale_series}"),
        ("rounds", f"reference IN {of_stale_series}"),
        ("series", _STALE),
        ("measurements", _STALE),
    ):
        db.execute(f"DELETE FROM {table} WHERE {rows}", wanted)
    return stale
