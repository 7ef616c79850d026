"""Would more calibration data change the assignment? What growing parts of it lead to.

A part is held against all samples, of which it is some. For a mean over n independent samples, the
variance of the difference between m of them and all is σ²(1/m − 1/n): for half of them that is
σ²/n, the variance of the result of all about the truth. So what still changes between half and all
is about what all are off by [derived].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from scipy.stats import spearmanr

from mpq_compile.allocate import Allocation, solve_allocation
from mpq_compile.calibrate import SHARES
from mpq_compile.cost.targets import TargetLike
from mpq_compile.data.batches import Batch, in_batches
from mpq_compile.errors import CalibrationError, PlanError
from mpq_compile.quant.range_stability import first_within
from mpq_compile.recipe import Recipe, RecipeOptions
from mpq_compile.session import Session
from mpq_compile.types import Budget, SensitivityTable

TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a part of the samples leads to, held against what all of them do.

    Args:
        samples: How many.
        agreement: Share of sites that get the same candidate.
        excess: Loss of its assignment above that of theirs, both by the table of all samples, as
            a share of theirs.
        correlation: Rank correlation of the losses of all (site, candidate), Spearman's ρ.
    """

    samples: int
    agreement: float
    excess: float
    correlation: float


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How the assignment follows from the number of samples.

    Args:
        samples: All that were given.
        parts: Growing parts of them, drawn with ``seed``.
        tolerance: An excess up to this counts as none.
    """

    samples: int
    parts: tuple[Part, ...]
    tolerance: float
    seed: int

    @property
    def enough(self) -> int | None:
        """Fewest samples from which on no part costs more than the tolerance; None for none."""
        counts, excesses = [p.samples for p in self.parts], [p.excess for p in self.parts]
        return first_within(counts, excesses, self.tolerance)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.enough is not None:
            return (
                f"the assignment is stable to {self.tolerance:.0%} of its loss from {self.enough} "
                f"samples of {self.samples}"
            )
        return (
            f"not stable yet at {self.samples} samples: the assignment of "
            f"{self.parts[-1].samples} loses {self.parts[-1].excess:.1%} more; give more"
        )


def stability(
    model: Any,
    example_inputs: Any,
    calibration: Any,
    target: TargetLike = "local",
    budget: Budget | Mapping[str, float] | None = None,
    metric: str = "sqnr",
    solver: str = "exact",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    allow_float: bool = False,
    tuned: bool = True,
    measure_s: float | None = None,
    **recipe: Unpack[RecipeOptions],
) -> Stability:
    """Plan on an eighth, a quarter and half of the samples, and hold that against all of them.

    Arguments are those of :func:`mpq_compile.plan`. Costs are measured once; ranges, sensitivities
    and the solution are made anew for each part, which takes about as long as for all of it.

    Raises:
        CalibrationError: There is one sample, or one batch where the model fixes its batch.
        InfeasibleBudgetError: Nothing keeps the budget.
        PlanError: The budget bounds a loss instead of a cost.
    """
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric=metric,
        solver=solver,
        recipe=Recipe(**recipe),
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
        measure_s=measure_s,
    )
    return stability_of(session, Budget.of(budget))


def stability_of(session: Session, budget: Budget, tolerance: float = TOLERANCE) -> Stability:
    """Return how the assignment of a session follows from the number of samples."""
    _refuse_loss_bounds(budget)
    parts = list(growing(session))
    full = session.allocation()
    chosen = full.expand(solve_allocation(full, budget, session.solver))
    return Stability(
        samples=sum(batch.samples for batch in session.batches),
        parts=tuple(_part(session, budget, part, full, chosen) for part in parts),
        tolerance=tolerance,
        seed=session.seed,
    )


def _refuse_loss_bounds(budget: Budget) -> None:
    bounds = {"max_drop": budget.max_drop, "max_loss": budget.max_loss}
    found = [name for name, bound in bounds.items() if bound is not None]
    if found:
        raise PlanError(
            "stability is that of the least loss within a cost",
            where="budget",
            expected="bounds on costs: latency_ms, size_mb, avg_bits, …",
            found=", ".join(found),
            remedy="give the cost that the plan came out with, as size_mb for instance",
        )


def growing(session: Session) -> Iterator[tuple[Batch, ...]]:
    """Yield growing parts of the data, each holding the one before, drawn with the seed.

    Raises:
        CalibrationError: The data cannot be divided.
    """
    free = session.network.captured.dynamic_batch
    batches = session.batches
    count = sum(batch.samples for batch in batches) if free else len(batches)
    order = torch.from_numpy(np.random.default_rng(session.seed % 2**63).permutation(count))
    sizes = sorted({int(count * share) for share in SHARES} - {0})
    if not sizes:
        raise CalibrationError(
            "too few samples to tell whether the result is stable",
            expected="2 or more" if free else "2 or more batches of the example's length",
            found=count,
            remedy="give more calibration data",
        )
    for size in sizes:
        yield in_batches(batches, order[:size]) if free else tuple(batches[i] for i in order[:size])


def _part(
    session: Session,
    budget: Budget,
    batches: Sequence[Batch],
    full: Allocation,
    chosen: Mapping[str, str],
) -> Part:
    table = _sensitivity(session, batches)
    allocation = replace(full, sensitivity=table)
    found = allocation.expand(solve_allocation(allocation, budget, session.solver))
    same = sum(found[site] == name for site, name in chosen.items())
    least = full.loss(chosen)
    return Part(
        samples=sum(batch.samples for batch in batches),
        agreement=same / len(chosen),
        excess=(full.loss(found) - least) / max(abs(least), 1e-12),
        correlation=_correlation(table, full.sensitivity),
    )


def _sensitivity(session: Session, batches: Sequence[Batch]) -> SensitivityTable:
    """Return the table that these samples alone lead to."""
    items = [b.inputs if b.labels is None else (b.inputs, b.labels) for b in batches]
    recipe = replace(session.recipe, samples=None)
    part = replace(session, calibration=items, recipe=recipe)
    part.network = session.network
    return part.sensitivity


def _correlation(one: SensitivityTable, other: SensitivityTable) -> float:
    keys = [(site, name) for site, row in other.loss.items() for name in row]
    a, b = ([table.loss[site][name] for site, name in keys] for table in (one, other))
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 1.0 if a == b else 0.0
    return float(spearmanr(a, b).statistic)
