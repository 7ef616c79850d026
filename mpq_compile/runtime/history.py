"""What was predicted of the networks that were measured on the way to an artifact.

``history.json`` stands beside the artifact, as its verification does, and is no part of its hash.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mpq_compile.errors import ArtifactError
from mpq_compile.runtime.artifact import HISTORY

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole network: its predicted latency against the measured one, in ms.

    Args:
        kind: ``anchor`` for a network that the latency model learned from before the first plan,
            predicted from kernels timed alone; ``round`` for a plan that was built and verified.
        name: What it is: the candidates that were assigned, or the number of the round.
        predicted_ms, predicted_ms_lower95, predicted_ms_upper95: With its 95 % interval.
        measured_ms, measured_ms_lower95, measured_ms_upper95: Median with its 95 % interval.
        status: Verdict of a round; empty for an anchor.
    """

    kind: Literal["anchor", "round"]
    name: str
    predicted_ms: float
    predicted_ms_lower95: float
    predicted_ms_upper95: float
    measured_ms: float
    measured_ms_lower95: float
    measured_ms_upper95: float
    status: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    """All that was measured of whole networks, in the order in which it was.

    ``time`` is when the last of it was, in UTC (ISO 8601).
    """

    comparisons: tuple[Comparison, ...]
    time: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"version": VERSION, **asdict(self)}


def write_history(folder: Path, history: History) -> None:
    """Put what was measured on the way beside an artifact."""
    text = json.dumps(history.to_json(), indent=1) + "\n"
    (folder / HISTORY).write_text(text, encoding="utf-8")


def read_history(folder: Path) -> History | None:
    """Return what stands beside an artifact, or None.

    Raises:
        ArtifactError: The file is damaged or of another version.
    """
    path = folder / HISTORY
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != VERSION:
            raise ValueError("another version")
        rows = tuple(Comparison(**row) for row in data.pop("comparisons"))
        return History(comparisons=rows, **data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            "the history beside the artifact is damaged",
            where=str(path),
            expected=f"version {VERSION}, as compiling writes it",
            found=str(error)[:200],
            remedy="delete the file: nothing but the report reads it",
        ) from error
