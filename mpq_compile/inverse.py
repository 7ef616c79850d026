"""The inverse problem: the cheapest network whose measured drop stays within a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.allocate import OBJECTIVES, Allocation
from mpq_compile.calibrate import Batch
from mpq_compile.capture import in_eval_mode
from mpq_compile.errors import InfeasibleBudgetError, PlanError, nearest
from mpq_compile.progress import track
from mpq_compile.registry import SOLVERS
from mpq_compile.solve.problem import Solution
from mpq_compile.types import Budget

if TYPE_CHECKING:
    from mpq_compile.session import Session

STEPS = 7


@dataclass
class Drop:
    """How much worse an assignment is than float, measured on its oracle.

    Args:
        limit: Greatest drop that is allowed.
        evaluate: The user's measure, higher is better; or None: the share (%) of calibration
            samples whose top-1 differs from float, which bounds the loss of accuracy on them.
        model: The float network, callable like the model.
        batches: Calibration data, for the label-free drop.
    """

    limit: float
    evaluate: Callable[[Callable[..., Any]], float] | None
    model: nn.Module
    batches: Sequence[Batch]
    measured: dict[tuple[str, ...], float] = field(default_factory=dict)

    @cached_property
    def _float_score(self) -> float:
        assert self.evaluate is not None
        with torch.no_grad(), in_eval_mode(self.model):
            return float(self.evaluate(self.model))

    def of(self, session: Session, assignment: dict[str, str]) -> float:
        """Return the drop of an assignment; each is measured once."""
        key = tuple(assignment.values())
        if key not in self.measured:
            reference = session.reference(assignment)
            if self.evaluate is not None:
                self.measured[key] = self._float_score - float(self.evaluate(reference))
            else:
                self.measured[key] = self._disagreement(session, reference)
        return self.measured[key]

    def _disagreement(self, session: Session, reference: nn.Module) -> float:
        differing = total = 0
        for batch in self.batches:
            with torch.no_grad():
                exact = session.network.module(*batch.inputs)[0]
            found = pytree.tree_leaves(reference(*batch.inputs))[0]
            differing += int((_top1(found) != _top1(exact)).sum())
            total += _top1(exact).numel()
        return 100.0 * differing / total


def _top1(output: Tensor) -> Tensor:
    if output.dim() < 2 or output.shape[1] < 2:
        raise PlanError(
            "max_drop without evaluate needs a classifier",
            expected="a first output [batch, classes, ...]",
            found=str(list(output.shape)),
            remedy="pass evaluate=..., which returns your measure of a network",
        )
    return output.argmax(1)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search ended with."""

    assignment: dict[str, str]
    solution: Solution
    notes: Sequence[str]


def cheapest_within_drop(session: Session, budget: Budget, objective: str, drop: Drop) -> Found:
    """Return the cheapest assignment on ``objective`` whose measured drop is within the limit.

    The proxy's loss bounds a knapsack that minimises the cost; the bound is found by bisection on
    its logarithm, each step judged by the measured drop.

    Raises:
        InfeasibleBudgetError: Even the most accurate assignment drops more than the limit.
    """
    if objective not in OBJECTIVES:
        raise PlanError(
            f"unknown objective {objective!r}",
            expected=", ".join(OBJECTIVES),
            found=repr(objective),
            remedy=nearest(objective, OBJECTIVES),
        )
    allocation = session.allocation()
    solve = _solver(session, allocation, budget, objective)
    low, high = _loss_range(allocation)
    best = solve(low)
    if best is None or drop.of(session, allocation.expand(best)) > drop.limit:
        raise _too_strict(session, allocation, best, drop)
    high = max(high, low * (1 + 1e-9), 1e-12)
    for _ in track(range(STEPS), "search the cheapest"):
        middle = _between(low, high)
        solution = solve(middle)
        good = solution is not None and drop.of(session, allocation.expand(solution)) <= drop.limit
        if good:
            assert solution is not None
            best, low = _cheaper(best, solution), middle
        else:
            high = middle
    assignment = allocation.expand(best)
    value = drop.of(session, assignment)
    return Found(
        assignment=assignment,
        solution=best,
        notes=[f"least {objective} with a measured drop of {value:.3g} (limit {drop.limit:g})"],
    )


def _between(low: float, high: float) -> float:
    floor = max(low, high * 1e-6)
    return (floor * high) ** 0.5


def _cheaper(a: Solution, b: Solution) -> Solution:
    assert a.loss is not None and b.loss is not None
    return b if b.loss <= a.loss else a


def _loss_range(allocation: Allocation) -> tuple[float, float]:
    """Return the loss of the most accurate and of the least accurate choice, site by site."""
    lows: dict[str, str] = {}
    highs: dict[str, str] = {}
    for members in allocation.groups().values():
        losses = {
            n: sum(allocation.sensitivity.loss[s.id][n] for s in members)
            for n in allocation.names_of(members, None)
        }
        least, most = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        lows.update({site.id: least for site in members})
        highs.update({site.id: most for site in members})
    return allocation.loss(lows), allocation.loss(highs)


def _solver(
    session: Session, allocation: Allocation, budget: Budget, objective: str
) -> Callable[[float], Solution | None]:
    peak = None if budget.peak_activation_mb is None else budget.peak_activation_mb * 1e6
    limits = allocation.limits(budget)
    run = SOLVERS.load(session.solver)

    def solve(loss: float) -> Solution | None:
        # Rounding must not forbid the assignment whose loss is the bound itself.
        bound = loss * (1 + 1e-9) + 1e-15
        solution = run(allocation.inverse_problem(objective, bound, limits, peak))
        return None if solution.status == "infeasible" else solution

    return solve


def _too_strict(
    session: Session, allocation: Allocation, best: Solution | None, drop: Drop
) -> InfeasibleBudgetError:
    found = "no assignment within the other budgets"
    if best is not None:
        value = drop.of(session, allocation.expand(best))
        found = f"{value:.3g}, by the most accurate assignment"
    return InfeasibleBudgetError(
        "the drop cannot be kept within its bound",
        expected=f"a drop of at most {drop.limit:g}",
        found=found,
        remedy="raise max_drop, allow wider candidates, or loosen the other budgets",
    )
