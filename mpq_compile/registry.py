"""Names to implementations, loaded only when first asked for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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
        """Import and return what ``name`` stands for.

        Args:
            name: One of the table, or ``file.py:attribute`` or ``package.module:attribute`` for
                what stands outside of it; a file is run.

        Raises:
            MpqError: The name is unknown, or what it names cannot be imported.
        """
        known = isinstance(name, str) and name in self.table
        if not known and isinstance(name, str) and ":" in name:
            return _outside(self.kind, name)
        if not known:
            raise MpqError(
                f"unknown {self.kind} {name!r}",
                expected=f"one of {', '.join(sorted(self.table))}, or file.py:attribute",
                found=repr(name),
                remedy=nearest(str(name), self.table),
            )
        module, _, attribute = self.table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


def _outside(kind: str, name: str) -> Any:
    """Return the attribute that ``file.py:attribute`` or ``package.module:attribute`` names."""
    source, _, attribute = name.rpartition(":")
    try:
        is_file = source.endswith(".py")
        module = import_file(Path(source)) if is_file else importlib.import_module(source)
        return getattr(module, attribute)
    except (Exception, SystemExit) as error:
        raise MpqError(
            f"the {kind} {name!r} cannot be imported",
            expected="file.py:attribute, or package.module:attribute on sys.path",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            remedy="correct the name, or import it by itself",
        ) from error


def import_file(path: Path) -> ModuleType:
    """Run a file of Python code as a module of its own; the files beside it can be imported too.

    Raises:
        ImportError, or whatever the code raises.
    """
    path = path.resolve()
    name = f"mpq_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a file of Python code")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and torch.export look their module up.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


METRICS = Registry(
    kind="metric",
    table={
        # What ranks whole networks best: ``benchmarks/sensitivity.py``.
        "auto": "mpq_compile.sensitivity.pairwise:PairwiseMetric",
        "fisher": "mpq_compile.sensitivity.fisher:FisherMetric",
        "gauss_newton": "mpq_compile.sensitivity.gauss_newton:GaussNewtonMetric",
        "kl": "mpq_compile.sensitivity.kl:KlMetric",
        "pairwise": "mpq_compile.sensitivity.pairwise:PairwiseMetric",
        "roundoff": "mpq_compile.sensitivity.roundoff:RoundoffMetric",
        "roundoff_relative": "mpq_compile.sensitivity.roundoff:relative",
        "sqnr": "mpq_compile.sensitivity.sqnr:SqnrMetric",
        "taylor": "mpq_compile.sensitivity.taylor:TaylorMetric",
    },
)

SOLVERS = Registry(
    kind="solver",
    table={
        # Of a table, the exact one; of a model, ``mpq_compile.auto`` goes on from there.
        "auto": "mpq_compile.solve.exact:solve_auto",
        "exact": "mpq_compile.solve.exact:solve_exact",
        "greedy": "mpq_compile.solve.greedy:solve_greedy",
        "milp": "mpq_compile.solve.milp:solve_milp",
        "pairwise": "mpq_compile.solve.pairwise:solve_pairwise",
        "ppso": "mpq_compile.solve.ppso:solve_ppso",
        "gcpso": "mpq_compile.solve.gcpso:solve_gcpso",
        "pareto": "mpq_compile.solve.pareto:solve_pareto",
        "mixquant": "mpq_compile.solve.mixquant:solve_mixquant",
    },
)

ROUNDINGS = Registry(
    kind="rounding",
    table={
        "gptq": "mpq_compile.reconstruct.gptq:reconstruct_gptq",
        "adaround": "mpq_compile.reconstruct.adaround:reconstruct_adaround",
        "brecq": "mpq_compile.reconstruct.brecq:reconstruct_brecq",
        "nearest": "mpq_compile.reconstruct.rounding:keep_nearest",
        "per_site": "mpq_compile.reconstruct.per_site:reconstruct_per_site",
        "qdrop": "mpq_compile.reconstruct.brecq:reconstruct_qdrop",
    },
)

# How a learned policy steps: these need labels and train, so they are no solvers of tables.
SEARCHES = Registry(
    kind="search",
    table={
        "asga": "mpq_compile.search.sharpness:SharpnessAware",
        "plain": "mpq_compile.search.sharpness:Plain",
    },
)

# How plans and networks show themselves: they stand on a stage before the one that draws them.
REPORTS = Registry(
    kind="report",
    table={
        "card": "mpq_compile.report.card:card",
        "page": "mpq_compile.report.page:write_report",
    },
)

BLACK_BOX_SOLVERS = Registry(
    kind="black-box solver",
    table={
        "gcpso": "mpq_compile.solve.black_box_solvers:run_gcpso",
        "ppso": "mpq_compile.solve.black_box_solvers:run_ppso",
        "greedy": "mpq_compile.solve.black_box_solvers:run_greedy",
        "exhaustive": "mpq_compile.solve.black_box_solvers:run_exhaustive",
    },
)
