"""The trade-off of one network between cost and loss, as records that are drawn and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mpq_compile.errors import PlanError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What fresh processes of the device measured; ms, with the 95 % interval of the median."""

    latency_ms: float
    latency_ms_lower95: float
    latency_ms_upper95: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One assignment.

    Args:
        candidates: Candidate of each site, in the order of the report's sites.
        cost: On the report's axis, in its unit; predicted.
        loss: Sum of the metric's losses.
        gap: Of the loss to the proven bound at this cost; None for what no solver chose.
        uniform: Name of the candidate that all sites have; None for others.
        drop: How much worse than float it was measured to be; None where it was not.
        score: What ``evaluate`` returned, higher is better.
        measured: Latency on the device.
        costs: What it is predicted to cost on every axis the target knows; empty where it was
            not measured, on a frontier of one axis.
        inverted: True where a cheaper point that was measured is better: the metric was wrong.
    """

    candidates: tuple[str, ...]
    cost: float
    loss: float
    gap: float | None = None
    uniform: str | None = None
    drop: float | None = None
    score: float | None = None
    measured: Measured | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    inverted: bool = False


@dataclass(frozen=True, kw_only=True)
class FrontierReport:
    """The frontier of a network on one axis, and what was measured of it.

    Args:
        axis: Field of :class:`~mpq_compile.types.Budget`, whose unit ``unit`` is.
        axes: Unit of each axis, ``axis`` first; several where the points are a grid of budgets.
        target: Name of the hardware profile, or address of the device.
        metric: Sensitivity metric that the losses are of, in ``metric_unit``.
        measure: What measured the drops: ``evaluate``, top1, kl, noise or accuracy.
        sites: Site ids.
        points: Of the frontier by ascending cost, at most a thousand; those measured among them.
        breakpoints: How many points the frontier has.
        complete: True where these are all, and proven.
        method: How they were found: ``states``, ``solves``.
        uniform: The same candidate everywhere, for each that all sites offer.
        tolerance: Differences of drop up to this are noise: they invert nothing.
        inversions: Pairs of indices into ``points``, neighbours among those measured, of which
            the cheaper is better; on several axes all pairs of which one is cheaper on each.
        concordance: Kendall's τ between the metric's order and the measured one, over all points
            that were measured, uniform ones too; 1 where they agree. None below two points.
        float_score: Score of the float network, where there are scores.
        budget: Other bounds that every point keeps.
        notes: What the reader should know.
        provenance: Versions and hashes.
    """

    version: int = VERSION
    axis: str
    unit: str
    axes: Mapping[str, str] = field(default_factory=dict)
    target: str
    metric: str
    metric_unit: str
    measure: str
    measure_unit: str
    sites: tuple[str, ...]
    points: tuple[Point, ...]
    breakpoints: int
    complete: bool
    method: str
    uniform: tuple[Point, ...]
    tolerance: float
    inversions: tuple[tuple[int, int], ...]
    concordance: float | None
    float_score: float | None
    budget: Mapping[str, float]
    notes: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def evaluated(self) -> list[Point]:
        """Points of the frontier that were measured on the task, by ascending cost."""
        return [point for point in self.points if point.drop is not None]

    def assignment(self, point: Point) -> dict[str, str]:
        """Return site → candidate of a point, as ``mpq.assign`` takes it."""
        return dict(zip(self.sites, point.candidates, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontierReport:
        """Rebuild a frontier from :meth:`to_json`, or from ``mpq frontier --json``.

        Raises:
            PlanError: It is something else, or of another version.
        """
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            known = {f.name: data[f.name] for f in fields(cls)}
            for name in ("points", "uniform"):
                known[name] = tuple(_point_of(point) for point in known[name])
            known["sites"] = tuple(known["sites"])
            known["inversions"] = tuple((a, b) for a, b in known["inversions"])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                "not a frontier",
                expected=f"version {VERSION}, as `mpq frontier --json` prints it",
                found=f"{type(error).__name__}: {error}",
                remedy="write the file again with `mpq frontier MODEL … --json > frontier.json`",
            ) from error


def _point_of(data: Mapping[str, Any]) -> Point:
    measured = data["measured"]
    rebuilt = {
        "candidates": tuple(data["candidates"]),
        "measured": None if measured is None else Measured(**measured),
    }
    return Point(**{**data, **rebuilt})


def inversions_among(
    points: Sequence[Point], tolerance: float = 0.0, axes: Sequence[str] = ()
) -> tuple[tuple[int, int], ...]:
    """Return neighbours among the measured points of which the cheaper has the lower drop.

    On several ``axes`` there are no neighbours: all pairs count of which one is cheaper on each.
    """
    places = [i for i, point in enumerate(points) if point.drop is not None]
    pairs = list(zip(places, places[1:], strict=False))
    if axes:
        pairs = [(a, b) for a in places for b in places if _cheaper(points[a], points[b], axes)]
    return tuple((a, b) for a, b in pairs if _drop(points[a]) < _drop(points[b]) - tolerance)


def _cheaper(a: Point, b: Point, axes: Sequence[str]) -> bool:
    return a is not b and all(a.costs[axis] <= b.costs[axis] for axis in axes)


def concordance(points: Sequence[Point]) -> float | None:
    """Return Kendall's τ-b between losses and drops; None below two points that differ."""
    measured = [(point.loss, _drop(point)) for point in points if point.drop is not None]
    signs = [
        (_sign(a[0] - b[0]), _sign(a[1] - b[1]))
        for i, a in enumerate(measured)
        for b in measured[:i]
    ]
    losses = sum(x != 0 for x, _ in signs)
    drops = sum(y != 0 for _, y in signs)
    if not losses or not drops:
        return None
    return sum(x * y for x, y in signs) / (losses * drops) ** 0.5


def beaten(points: Sequence[Point], tolerance: float = 0.0, axes: Sequence[str] = ()) -> list[bool]:
    """Return whether a measured point that is cheaper, on each of several axes, has a lower drop.

    Points are by ascending cost where there is one axis.
    """
    if axes:
        worse = {b for _, b in inversions_among(points, tolerance, axes)}
        return [i in worse for i in range(len(points))]
    least = float("inf")
    found = []
    for point in points:
        drop = point.drop
        found.append(drop is not None and drop > least + tolerance)
        least = least if drop is None else min(least, drop)
    return found


def near_float(report: FrontierReport) -> float | None:
    """Return the score above which the tenth of the range next to float lies.

    None where there are no scores, or where fewer than three points or most of them lie there.
    """
    scores = [point.score for point in report.evaluated if point.score is not None]
    if report.float_score is None or not scores:
        return None
    low = report.float_score - 0.1 * (report.float_score - min(scores))
    above = sum(score >= low for score in scores)
    return low if 3 <= above < len(scores) else None


def _drop(point: Point) -> float:
    assert point.drop is not None
    return point.drop


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
