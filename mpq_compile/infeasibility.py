"""What is said where no assignment is within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING

from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.solve.problem import Solution
from mpq_compile.types import Budget

if TYPE_CHECKING:
    from mpq_compile.allocate import Allocation

# Figures that are to be used as budgets are rounded up, once the noise of sums is off.
_UP = Context(prec=4, rounding=ROUND_CEILING)
_SUM_DIGITS = 12

# Axis of the cost table → its name, the factor to the budget's unit, and that unit.
UNITS = {
    "latency_us": ("latency", 1e-3, "ms"),
    "size_bytes": ("size", 1e-6, "MB"),
    "bops": ("BOPs", 1.0, "BOPs"),
    "energy_mj": ("energy", 1.0, "mJ"),
    "weight_bits": ("average weight", 1.0, "bits"),
}


def infeasible(
    allocation: Allocation,
    budget: Budget,
    limits: Mapping[str, float],
    solution: Solution,
) -> InfeasibleBudgetError:
    """Return the error that says, for each budget, the least that would do: alone, and, by the
    certificate of the solver's answer, beside the other budgets as they are."""
    parts, alone, beside = [], [], []
    attainable = solution.certificate.get("attainable", {})
    needed = solution.certificate.get("least_budget", {})
    for axis, limit in limits.items():
        least, assignment = _cheapest(allocation, axis, budget.peak_activation_bytes)
        least = max(least, attainable.get(axis, least))  # changes of format cost as well
        shown = _enough(allocation, axis, least)
        alone.append(_least(allocation, budget, axis, least))
        if len(limits) > 1 and needed.get(axis) is not None:
            beside.append(_least(allocation, budget, axis, needed[axis]))
        if least > limit:
            bound = f"{UNITS[axis][0]} budget {_figure(allocation, axis, limit)}"
            if axis == "latency_us" and allocation.p95_binds(budget):
                bound = _p95_bound(bound, budget, allocation.p95_ratio)
            parts.append(
                f"{bound} is below {shown}, the cheapest assignment ({_described(assignment)})"
            )
    reason = "; ".join(parts) or "each budget can be met alone, but not all of them together"
    enough = "; beside the other budgets at least: " + " or ".join(beside) if beside else ""
    return InfeasibleBudgetError(
        f"no assignment fits the budget: {reason}",
        expected=f"each alone at least: {', '.join(alone)}{enough}",
        found=", ".join(f"{k}={v:g}" for k, v in budget.given().items()),
        remedy="raise the budget, or allow cheaper candidates (candidates=[...])",
    )


def _least(allocation: Allocation, budget: Budget, axis: str, value: float) -> str:
    """Return what a budget would have to be, in its own terms, for this usage."""
    shown = f"{UNITS[axis][0]} {_enough(allocation, axis, value)}"
    if axis != "latency_us" or not allocation.p95_binds(budget):
        return shown
    median_ms = (value + allocation.costs.overhead.get(axis, 0.0)) / 1e3
    return f"latency_p95_ms {_up(median_ms * allocation.p95_ratio)} ({shown} for the median)"


def _figure(allocation: Allocation, axis: str, value: float) -> str:
    """Return a usage without overhead in the budget's unit, overhead included."""
    return f"{_in_unit(allocation, axis, value):.4g} {UNITS[axis][2]}"


def _enough(allocation: Allocation, axis: str, value: float) -> str:
    """Return the figure of a usage as a budget that holds it."""
    return f"{_up(_in_unit(allocation, axis, value))} {UNITS[axis][2]}"


def _in_unit(allocation: Allocation, axis: str, value: float) -> float:
    factor = UNITS[axis][1]
    if axis == "weight_bits":  # the budget names their mean
        factor = 1 / sum(site.stored_weights for site in allocation.sites)
    return (value + allocation.costs.overhead.get(axis, 0.0)) * factor


def _up(value: float) -> str:
    """Spell a number with four figures, rounded up."""
    return f"{float(_UP.create_decimal(Decimal(f'{value:.{_SUM_DIGITS}g}'))):.4g}"


def _p95_bound(bound: str, budget: Budget, ratio: float) -> str:
    """Name the budget that was given, and how a bound on the median comes of it."""
    return (
        f"latency_p95_ms budget {budget.latency_p95_ms:g} ms, over {ratio:.3g} (95th percentile "
        f"over median) a {bound} for the median,"
    )


def _cheapest(
    allocation: Allocation, axis: str, peak_bytes: float | None
) -> tuple[float, dict[str, str]]:
    assignment = {}
    for members in allocation.groups().values():
        terms = allocation.terms(members, peak_bytes)
        best = min(terms, key=lambda term: term.costs[axis])
        assignment.update({site.id: best.name for site in members})
    return sum(allocation.costs.costs[s][n][axis] for s, n in assignment.items()), assignment


def _described(assignment: Mapping[str, str]) -> str:
    names = sorted(set(assignment.values()))
    return f"all {names[0]}" if len(names) == 1 else "a mix of " + ", ".join(names)
