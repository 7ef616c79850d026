"""Names to implementations, loaded only when first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpq_compile.errors import MpqError, nearest


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A table from name to ``"package.module:attribute"``.

    Args:
        kind: What the names stand for ("metric", "solver"), used in errors.
        table: Name to import path.
    """

    kind: str
    table: Mapping[str, str]

    def __iter__(self):
        return iter(self.table)

    def load(self, name: str) -> Any:
        """Import and return what ``name`` stands for; raise ``MpqError`` for an unknown name."""
        if name not in self.table:
            raise MpqError(
                f"unknown {self.kind} {name!r}",
                expected=f"one of {', '.join(sorted(self.table))}",
                found=repr(name),
                remedy=nearest(name, self.table),
            )
        module, _, attribute = self.table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


METRICS = Registry(
    kind="metric",
    table={
        "sqnr": "mpq_compile.sensitivity.sqnr:SqnrMetric",
        "taylor": "mpq_compile.sensitivity.taylor:TaylorMetric",
    },
)

SOLVERS = Registry(
    kind="solver",
    table={
        "exact": "mpq_compile.solve.exact:solve_exact",
        "greedy": "mpq_compile.solve.greedy:solve_greedy",
        "milp": "mpq_compile.solve.milp:solve_milp",
    },
)
