"""The frontier of a network: proven by the solver, then measured on the task and on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np

from mpq_compile.allocate import Allocation
from mpq_compile.cost.targets import TargetLike
from mpq_compile.errors import PlanError, nearest
from mpq_compile.infeasibility import infeasible
from mpq_compile.judging import Evaluate, Judge, default_measure, is_named
from mpq_compile.measuring import NetworkTimes
from mpq_compile.progress import track
from mpq_compile.recipe import Recipe, RecipeOptions
from mpq_compile.registry import SOLVERS
from mpq_compile.report.frontier import (
    FrontierReport,
    Point,
    beaten,
    concordance,
    inversions_among,
)
from mpq_compile.session import Session
from mpq_compile.solve.curve import Frontier
from mpq_compile.solve.curve import frontier as curve_of
from mpq_compile.types import Budget

POINTS = 12
# Points that a report lists; the curve looks the same.
LISTED = 1000


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a frontier: the field of a budget, its place in the cost table, its unit."""

    name: str
    column: str
    factor: float
    unit: str


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(name="size_mb", column="size_bytes", factor=1e6, unit="MB"),
        Axis(name="latency_ms", column="latency_us", factor=1e3, unit="ms"),
        Axis(name="bops", column="bops", factor=1.0, unit="BOPs"),
        Axis(name="energy_mj", column="energy_mj", factor=1.0, unit="mJ"),
        Axis(name="avg_bits", column="weight_bits", factor=1.0, unit="bits a weight"),
    )
}


def frontier(
    model: Any,
    example_inputs: Any,
    calibration: Any,
    target: TargetLike = "local",
    axis: str | Sequence[str] = "size_mb",
    budget: Budget | Mapping[str, float] | None = None,
    metric: str = "sqnr",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    points: int = POINTS,
    evaluate: Evaluate | str | None = None,
    measure: bool = False,
    tolerance: float = 0.0,
    allow_float: bool = False,
    tuned: bool = True,
    measure_s: float | None = None,
    **recipe: Unpack[RecipeOptions],
) -> FrontierReport:
    """Return the whole trade-off between cost and loss, some of its points measured.

    Every breakpoint of the metric's loss against the cost is computed. ``points`` of them, spread
    over the frontier, and the uniform assignments are then judged on their oracles, which needs no
    build. What was judged or measured is kept on disk: an interrupted run goes on where it was.

    Args:
        model, example_inputs, calibration, target, metric: As for :func:`mpq_compile.plan`.
        candidates, constraints, allow_float, tuned, measure_s, recipe: As there.
        axis: What the cost is: "size_mb", "latency_ms", "bops", "energy_mj" or "avg_bits". Several
            of them give a grid of budgets: points of which none is at least as good as another on
            every axis and in loss.
        budget: Bounds on other axes that every point must keep, and on the range of these.
        points: How many points of the frontier are judged; 0 for none.
        evaluate: ``evaluate(net) -> float``, higher is better. Or a name: "kl" (the default for
            classifiers), "noise" (the default for others), "top1" or, with labels, "accuracy":
            these are taken on every fourth calibration sample, which nothing else then sees.
        tolerance: Differences of the drop up to this are noise and count as no inversion.
        measure: Build the judged points too and time them in fresh processes of the target.

    Raises:
        InfeasibleBudgetError: Nothing keeps ``budget``.
        PlanError: The axis or the measure is unknown, or nothing can be timed on the target.
    """
    how = Recipe(**recipe)
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric,
        recipe=how.judged_apart() if is_named(evaluate) else how,
        allow_float=allow_float,
        tuned=tuned,
        measure_s=measure_s,
    )
    return frontier_of(
        session,
        axis,
        Budget.of(budget),
        points=points,
        evaluate=evaluate,
        measure=measure,
        tolerance=tolerance,
    )


def frontier_of(
    session: Session,
    axis: str | Sequence[str],
    budget: Budget | None = None,
    *,
    points: int = POINTS,
    evaluate: Evaluate | str | None = None,
    measure: bool = False,
    tolerance: float = 0.0,
) -> FrontierReport:
    """Return the frontier of a session; see :func:`frontier`."""
    axes = _axes(axis)
    _check(session, points, budget, measure)
    session.check_database()
    _check_tolerance(tolerance)
    budget = budget or Budget()
    judge = Judge(session, evaluate or default_measure(session), session.held_out)
    allocation = session.allocation()
    scale = _Scale(allocation, axes)
    curve = _curve(allocation, axes, budget)
    chosen = set(spread_points(curve, points))
    listed = sorted({*chosen, *np.linspace(0, len(curve) - 1, min(LISTED, len(curve))).astype(int)})
    found = [scale.point(curve, i) for i in listed]
    judged = [k for k, i in enumerate(listed) if i in chosen]
    uniform = scale.uniforms()
    work = [*(found[k] for k in judged), *(uniform if points else ())]
    done = [_judged(judge, scale, p) for p in track(work, f"evaluate ({judge.name})")]
    if measure:
        times = NetworkTimes(session)
        done = [
            replace(p, measured=times.of(scale.assignment(p)))
            for p in track(done, "measure on the device")
        ]
    for k, point in zip(judged, done, strict=False):
        found[k] = point
    marked = _marked(found, tolerance, scale.several)
    return FrontierReport(
        axis=scale.axis.name,
        unit=scale.axis.unit,
        axes={a.name: a.unit for a in axes},
        target=session.target_name,
        metric=session.metric,
        metric_unit=session.sensitivity.unit,
        measure=judge.name,
        measure_unit=judge.unit,
        sites=scale.sites,
        points=tuple(marked),
        breakpoints=len(curve),
        complete=curve.complete,
        method=curve.method,
        uniform=tuple(done[len(judged) :] or uniform),
        tolerance=tolerance,
        inversions=inversions_among(marked, tolerance, scale.several),
        concordance=concordance(done),
        float_score=judge.float_score if points else None,
        budget=budget.given(),
        notes=_notes(session, judge, curve, marked),
        provenance=session.provenance(),
    )


def _axes(axis: str | Sequence[str]) -> tuple[Axis, ...]:
    listed = isinstance(axis, Iterable) and not isinstance(axis, str)
    names: tuple[Any, ...] = tuple(dict.fromkeys(axis)) if listed else (axis,)
    if not names:
        raise PlanError(
            "a frontier needs an axis",
            expected=", ".join(AXES),
            found="none",
            remedy="name one, or several for a grid",
        )
    for name in names:
        if name not in AXES:
            raise PlanError(
                f"unknown axis {name!r}",
                expected=", ".join(AXES),
                found=repr(name),
                remedy=nearest(str(name), AXES),
            )
    return tuple(AXES[name] for name in names)


def _check_tolerance(tolerance: float) -> None:
    if not tolerance >= 0:
        raise PlanError(
            "the tolerance is negative",
            expected="a difference of the drop that counts as noise: 0 or more",
            found=tolerance,
            remedy="leave it out, or give the noise of the measure",
        )


def _check(session: Session, points: int, budget: Budget | None, measure: bool) -> None:
    if not isinstance(points, int) or points < 0:
        raise PlanError(
            "the number of points must be a whole number, not negative",
            expected="0 or more",
            found=repr(points),
            remedy="correct the number, or leave it out",
        )
    if budget is not None and (budget.max_drop is not None or budget.max_loss is not None):
        raise PlanError(
            "a frontier shows every loss",
            expected="bounds on costs",
            found="max_drop or max_loss",
            remedy="ask `plan` for the cheapest network within a drop",
        )
    if measure and (session.analytic or not session.device.present):
        raise PlanError(
            "no network runs on this target, so none can be timed",
            where=session.target_name,
            expected="a target that runs networks, such as local",
            remedy="leave out the measuring",
        )


def _curve(allocation: Allocation, axes: Sequence[Axis], budget: Budget) -> Frontier:
    limits, columns = allocation.limits(budget), [axis.column for axis in axes]
    problem = allocation.tradeoff_problem(columns, limits, budget.peak_activation_bytes)
    curve = curve_of(problem, columns)
    if not len(curve):
        # What each budget would have to be beside the others takes a solve that fails.
        raise infeasible(allocation, budget, limits, SOLVERS.load("exact")(problem))
    return curve


def spread_points(curve: Frontier, count: int) -> list[int]:
    """Return at most ``count`` points at equal distances along the curve, both ends among them.

    Distance is that of a drawing with a linear cost and a logarithmic loss. On several axes the
    points are far from each other.
    """
    if count <= 0 or not len(curve):
        return []
    if len(curve) <= count:
        return list(range(len(curve)))
    floor = max(float(curve.loss[curve.loss > 0].min(initial=np.inf)), 1e-300)
    height = -np.log(np.maximum(curve.loss, floor if math.isfinite(floor) else 1.0))
    if len(curve.axes) > 1:
        return _far_apart(np.column_stack([curve.usage, height]), count)
    steps = np.hypot(_share(curve.cost), _share(height))
    places = np.append(0.0, np.cumsum(steps))
    wanted = np.linspace(0.0, places[-1], count)
    return sorted({int(np.abs(places - at).argmin()) for at in wanted})


def _far_apart(values: np.ndarray, count: int) -> list[int]:
    """Return points that cover rows of ``values``: each is the farthest from those before it."""
    span = np.ptp(values, axis=0)
    scaled = values / np.where(span > 0, span, 1.0)
    chosen = [int(values[:, 0].argmin())]
    distance = np.full(len(values), np.inf)
    while len(chosen) < count:
        step = np.linalg.norm(scaled - scaled[chosen[-1]], axis=1)
        distance = np.minimum(distance, step)
        chosen.append(int(distance.argmax()))
    return sorted(set(chosen))


def _share(values: np.ndarray) -> np.ndarray:
    """Return steps between neighbours as shares of the range."""
    span = float(np.ptp(values))
    steps: np.ndarray = np.abs(np.diff(values)) / (span or 1.0)
    return steps


class _Scale:
    """Points in the user's units."""

    def __init__(self, allocation: Allocation, axes: Sequence[Axis]) -> None:
        self.axis = axes[0]
        self.several = tuple(axis.name for axis in axes) if len(axes) > 1 else ()
        self.sites = tuple(site.id for site in allocation.sites)
        self._allocation = allocation
        self._weights = sum(site.stored_weights for site in allocation.sites)

    def point(self, curve: Frontier, index: int) -> Point:
        """Return a point of the frontier."""
        assignment = self._allocation.spread(curve.assignment(index))
        overhead = self._allocation.costs.overhead.get(self.axis.column, 0.0)
        point = Point(
            candidates=tuple(assignment[site] for site in self.sites),
            cost=self._value(self.axis, float(curve.cost[index]) + overhead),
            loss=float(curve.loss[index]),
            gap=float(curve.gap[index]),
            uniform=_only(assignment.values()),
        )
        return replace(point, costs=self.costs(point)) if self.several else point

    def uniforms(self) -> list[Point]:
        """Return the points that have one candidate everywhere, by ascending cost."""
        offered = [set(names) for names in self._allocation.choices.values()]
        names = [n for n in self._allocation.choices[self.sites[0]] if all(n in o for o in offered)]
        found = []
        for name in names:
            assignment = dict.fromkeys(self.sites, name)
            usage = self._allocation.usage(assignment)
            point = Point(
                candidates=(name,) * len(self.sites),
                cost=self._value(self.axis, usage[self.axis.column]),
                loss=self._allocation.loss(assignment),
                uniform=name,
            )
            found.append(replace(point, costs=self.costs(point)) if self.several else point)
        return sorted(found, key=lambda point: (point.cost, point.loss))

    def assignment(self, point: Point) -> dict[str, str]:
        """Return site → candidate."""
        return dict(zip(self.sites, point.candidates, strict=True))

    def costs(self, point: Point) -> dict[str, float]:
        """Return what a point costs on every axis that the target knows."""
        usage = self._allocation.usage(self.assignment(point))
        return {
            name: self._value(axis, usage[axis.column])
            for name, axis in AXES.items()
            if axis.column in usage
        }

    def _value(self, axis: Axis, usage: float) -> float:
        return usage / (self._weights if axis.column == "weight_bits" else axis.factor)


def _only(names: Iterable[str]) -> str | None:
    distinct = set(names)
    return distinct.pop() if len(distinct) == 1 else None


def _judged(judge: Judge, scale: _Scale, point: Point) -> Point:
    judgement = judge.of(scale.assignment(point))
    return replace(point, drop=judgement.drop, score=judgement.score, costs=scale.costs(point))


def _marked(points: Sequence[Point], tolerance: float, axes: Sequence[str]) -> list[Point]:
    marks = zip(points, beaten(points, tolerance, axes), strict=True)
    return [replace(point, inverted=mark) for point, mark in marks]


def _notes(session: Session, judge: Judge, curve: Frontier, points: Sequence[Point]) -> list[str]:
    notes = []
    if not curve.complete:
        worst = float(curve.gap.max())
        notes.append(
            f"{len(curve)} {'points of a grid' if len(curve.axes) > 1 else 'breakpoints'} by exact "
            f"solves, spread over the range: there are more "
            f"between them (largest gap of a point {worst:.2g})"
        )
    if judge.name != "evaluate" and session.held_out is session.batches:
        notes.append(f"too few samples to hold some out: {judge.name} is of those calibrated on")
    inverted = sum(point.inverted for point in points)
    if inverted:
        notes.append(
            f"worse than a cheaper one, although {session.metric} says otherwise: {inverted} of "
            f"{sum(point.drop is not None for point in points)} measured points"
        )
    return notes
