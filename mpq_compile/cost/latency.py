"""Latency of a network: a Gaussian belief about its parts that whole networks correct.

A kernel timed alone finds other caches than in its network, and nothing is known of what lies
between sites. So the time θ of each (site, candidate) in the network is believed to be [derived]

    θ_i = m_i · (1 + g + f_format(i) + k_kernel(i) + s_site(i))

with m_i the time measured alone (or estimated), and g, f, k, s independent normal errors of mean
zero: common to the network, to a compute format, to a kernel, to a site. A conversion between two
sites has an error of its own; what formats do to each other between sites (``cost.effects``) has a
coefficient of mean zero for each kind of it, and the network a constant of mean zero for what
belongs to no site. The machine drifts: each run of measurements but one has a factor 1 + d in
common. A run that found the machine not as usual may be much further from the others, and what
comes next is predicted at the speed of the latest of the rest, as long as there is one.

The latency of an assignment is the sum of its parts, so whole networks that were measured are
linear observations of normal variables, and what is believed after them is exact (Kalman's
update). Few assignments pin the common errors; every network that is built and measured later pins
what it has in common with the next one. Predictions come with their interval, and the model stays
a sum of sites and pairs, which is what solvers need.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from mpq_compile.cost.effects import Effects, widest
from mpq_compile.types import Candidate, CostTable

_AXIS = "latency_us"
# Two sides of a normal distribution hold 95 % within so many standard deviations.
Z95 = 1.96
# Of the update, where the machine drifted; a third changes the sixth digit.
_PASSES = 2


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative standard deviations of the errors; ``benchmarks/prediction.py`` checks them.

    Args:
        network, compute, kernel, site: Of g, f, k and s above.
        transition: Of a conversion's time.
        constant: Of the constant, as a share of the mean of what is observed.
        edge: Of what a change of format costs if it happened at every edge, as such a share.
        join: Of what all joins of one operator take in a format, as such a share.
        drift: Of the machine's speed between two runs.
        unsettled: The same where one of them found the machine not as usual.
    """

    network: float = 0.10
    compute: float = 0.10
    kernel: float = 0.08
    site: float = 0.05
    transition: float = 0.5
    constant: float = 0.02
    edge: float = 0.05
    join: float = 0.15
    drift: float = 0.02
    unsettled: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A whole network that was measured: assignment, latency in µs and its relative error.

    ``run`` numbers the occasion: what was measured on one occasion found the machine alike, and
    not as it usually is where it is not ``settled``.
    """

    assignment: Mapping[str, str]
    latency_us: float
    error: float = 0.01
    run: int = 0
    settled: bool = True


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted latency in µs and its standard deviation."""

    mean_us: float
    sd_us: float

    @property
    def interval_us(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.mean_us - Z95 * self.sd_us, self.mean_us + Z95 * self.sd_us


# A site with one kernel: candidates that share it are one part, nothing tells them apart.
Place = tuple[str, str]
Change = tuple[tuple[str, str], tuple[str, str]]  # a pair of sites and their formats
Effect = tuple[str, ...]  # "edge" and two formats, or an operator and its format


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """What is believed of a network's parts; :meth:`learned` gives the belief after more data.

    Args:
        costs: Times of sites and conversions alone; other axes are passed through.
        kernels: What each site runs with each candidate: equal names have one time alone and
            share an error.
        estimated: Kernels whose time was not measured, and the relative error of their estimates.
        effects: Where formats of several sites matter together.
        errors: How wrong the parts may be.
        observations: Whole networks that were measured.
    """

    costs: CostTable
    kernels: Mapping[str, Mapping[str, str]]
    estimated: Mapping[str, float] = field(default_factory=dict)
    effects: Effects = Effects()
    errors: Errors = Errors()
    observations: tuple[Observation, ...] = ()
    _belief: _Belief = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_belief", _Belief(self))

    def learned(self, observations: Sequence[Observation]) -> LatencyModel:
        """Return the model after these measurements too."""
        return dataclasses.replace(self, observations=(*self.observations, *observations))

    def table(self) -> CostTable:
        """Return the costs with the times that are believed now."""
        believed, speed = self._belief, self._belief.speed
        costs = {
            site: {
                name: {**entry, _AXIS: max(0.0, speed * believed.site_us(site, name))}
                for name, entry in entries.items()
            }
            for site, entries in self.costs.costs.items()
        }
        transitions = {
            pair: {formats: speed * us for formats, us in entry.items()}
            for pair, entry in self._pairs().items()
        }
        overhead = {**self.costs.overhead, _AXIS: speed * believed.constant_us}
        return dataclasses.replace(
            self.costs, costs=costs, transitions=transitions, overhead=overhead
        )

    def _pairs(self) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
        """Return the costs of pairs of formats: conversions, edges, and joins.

        A join's cost is spread over neighbouring pairs of its sites, each in the wider format:
        exact where all have one format, or where there are two.
        """
        pairs: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        for pair in self.costs.transitions:
            self._add(pairs, pair, 1.0, partial(_change, pair))
        for edge in self.effects.edges:
            self._add(pairs, (edge.a, edge.b), edge.weight, _edge)
        for join in self.effects.joins:
            share = join.weight / (len(join.sites) - 1)
            for pair in itertools.pairwise(join.sites):
                self._add(pairs, pair, share, partial(_join, join.operator))
        return pairs

    def _add(
        self,
        pairs: dict[tuple[str, str], dict[tuple[str, str], float]],
        pair: tuple[str, str],
        weight: float,
        part: Callable[[tuple[str, str]], Change | Effect],
    ) -> None:
        """Add the mean of a part to each pair of formats that two sites can have."""
        if pair[0] == pair[1]:
            return
        entry = pairs.setdefault(pair, {})
        for formats in itertools.product(self._formats[pair[0]], self._formats[pair[1]]):
            entry[formats] = entry.get(formats, 0.0) + weight * self._belief.us(part(formats))

    @cached_property
    def _formats(self) -> dict[str, list[str]]:
        """Formats that each site may read."""
        return {
            site: list(dict.fromkeys(Candidate.parse(name).input_format for name in entries))
            for site, entries in self.costs.costs.items()
        }

    def predict(self, assignment: Mapping[str, str], same_run: bool = False) -> Prediction:
        """Return the latency of an assignment, and how far off it may be.

        ``same_run`` predicts for the latest run itself, so that no drift follows. The error of
        measuring an assignment is not in its prediction.
        """
        return self._belief.predict(assignment, same_run)

    @property
    def next_run(self) -> int:
        """Number of the next occasion on which whole networks are measured."""
        return max((observation.run for observation in self.observations), default=-1) + 1

    def alone_us(self, assignment: Mapping[str, str]) -> float:
        """Return the plain sum of the sites' times alone."""
        return sum(self.costs.costs[site][name][_AXIS] for site, name in assignment.items())


def _change(pair: tuple[str, str], formats: tuple[str, str]) -> Change:
    return pair, formats


def _edge(formats: tuple[str, str]) -> Effect:
    return "edge", *formats


def _join(operator: str, formats: tuple[str, str]) -> Effect:
    return operator, widest(*formats)


class _Belief:
    """The joint normal distribution of all parts, after the observations.

    Parts are places, changes, effects, the constant, and the drift of each run but one: the first
    that found the machine as usual, or the first.
    """

    def __init__(self, model: LatencyModel) -> None:
        costs = model.costs
        self._kernels = model.kernels
        self._changes = costs.transitions
        places: dict[Place, tuple[float, str]] = {}
        for site, entries in costs.costs.items():
            for name, entry in entries.items():
                places[site, model.kernels[site][name]] = entry[_AXIS], _compute(name)
        changes: dict[Change, float] = {
            (pair, formats): us
            for pair, row in costs.transitions.items()
            for formats, us in row.items()
        }
        kinds = _effects(model)
        parts: list[Place | Change | Effect] = [*places]
        parts += changes
        parts += kinds
        self._numbers = {part: number for number, part in enumerate(parts)}
        self._effects = model.effects
        settled = {o.run: o.settled for o in sorted(model.observations, key=lambda o: o.run)}
        usual = [run for run, is_usual in settled.items() if is_usual]
        base = next(iter(usual or settled), -1)
        self._runs = [run for run in settled if run != base]
        self._latest = max(settled, default=-1)
        self._next = max(usual, default=self._latest)
        move = {True: model.errors.drift, False: model.errors.unsettled}
        moves = [move[settled[run]] for run in self._runs]
        self._next_move = move[bool(usual) or not settled]
        alone = np.array([us for us, _ in places.values()])
        between = np.array(list(changes.values()))
        seen = [o.latency_us for o in model.observations]
        scale = float(np.mean(seen)) if seen else float(alone.sum()) * len(costs.costs) / len(alone)
        errors = model.errors
        spread = [scale * (errors.edge if kind[0] == "edge" else errors.join) for kind in kinds]
        spread += [errors.constant * scale, *moves]
        self._constant = len(parts)
        self._mean = np.array([*alone, *between, *[0.0] * len(spread)])
        self._covariance = np.diag(np.array([*alone, *between * errors.transition, *spread]) ** 2)
        relative = _relative_covariance(model, places)
        self._covariance[: len(places), : len(places)] = relative * np.outer(alone, alone)
        if model.observations:
            self._update(model.observations)

    def _update(self, observations: Sequence[Observation]) -> None:
        """Condition on the observations.

        Drift multiplies what a network takes on the other occasions, which is what is sought: it is
        first taken to be what was seen, then what follows from that.
        """
        prior = self._mean, self._covariance
        seen = np.array([o.latency_us for o in observations])
        steady = np.array([self._row(o.assignment, -1, 0.0) for o in observations])
        noise = np.diag((np.array([o.error for o in observations]) * seen) ** 2)
        drifting_us = seen
        for _ in range(_PASSES if self._runs else 1):
            drifts = [
                self._row(o.assignment, o.run, us)
                for o, us in zip(observations, drifting_us, strict=True)
            ]
            self._mean, self._covariance = _conditioned(*prior, np.array(drifts), seen, noise)
            drifting_us = steady @ self._mean

    def _row(self, assignment: Mapping[str, str], run: int, latency_us: float) -> np.ndarray:
        """Return which parts an assignment has; drift moves its latency by a share of it."""
        row = np.zeros(len(self._mean))
        row[self._constant] = 1.0
        if run in self._runs:
            row[self._constant + 1 + self._runs.index(run)] = latency_us
        for site, name in assignment.items():
            row[self._numbers[site, self._kernels[site][name]]] = 1.0
        formats = {site: Candidate.parse(name).input_format for site, name in assignment.items()}
        for part, weight in self._effects.row(formats).items():
            row[self._numbers[part]] = weight
        for pair, known in self._changes.items():
            found = formats[pair[0]], formats[pair[1]]
            if found in known:
                row[self._numbers[pair, found]] = 1.0
        return row

    def predict(self, assignment: Mapping[str, str], same_run: bool) -> Prediction:
        """Return the latency in the latest run, or in the next, until which the machine drifts."""
        parts = self._row(assignment, -1, 0.0)
        steady_us = float(parts @ self._mean)
        run = self._latest if same_run else self._next
        row = self._row(assignment, run, steady_us)
        drift = 0.0 if same_run else self._next_move
        variance = float(row @ self._covariance @ row) + (drift * steady_us) ** 2
        return Prediction(mean_us=self._speed(run) * steady_us, sd_us=max(variance, 0.0) ** 0.5)

    @property
    def speed(self) -> float:
        """What latencies of the next run are expected to be, over those of parts."""
        return self._speed(self._next)

    def _speed(self, run: int) -> float:
        if run not in self._runs:
            return 1.0
        return 1.0 + float(self._mean[self._constant + 1 + self._runs.index(run)])

    def site_us(self, site: str, name: str) -> float:
        return self.us((site, self._kernels[site][name]))

    def us(self, part: Place | Change | Effect) -> float:
        """Return the mean of a part; 0 for what makes no difference."""
        number = self._numbers.get(part)
        return 0.0 if number is None else float(self._mean[number])

    @property
    def constant_us(self) -> float:
        return float(self._mean[self._constant])


def _conditioned(
    mean: np.ndarray, covariance: np.ndarray, rows: np.ndarray, seen: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of normal variables after ``rows @ variables + noise`` was seen
    (Kalman's update)."""
    gain = covariance @ rows.T
    total = rows @ gain + noise
    after = mean + gain @ np.linalg.solve(total, seen - rows @ mean)
    return after, covariance - gain @ np.linalg.solve(total, gain.T)


def _effects(model: LatencyModel) -> list[Effect]:
    """Return the kinds of effects that the sites' formats can have."""
    formats = sorted({fmt for entry in model._formats.values() for fmt in entry})
    changes = itertools.permutations(formats, 2) if model.effects.edges else ()
    edges = [("edge", *pair) for pair in changes]
    operators = dict.fromkeys(join.operator for join in model.effects.joins)
    return [*edges, *((operator, fmt) for operator in operators for fmt in formats)]


def _relative_covariance(
    model: LatencyModel, places: Mapping[Place, tuple[float, str]]
) -> np.ndarray:
    """Return the covariance of the relative errors of places."""
    errors = model.errors
    kernels = np.array([kernel for _, kernel in places])
    computes = np.array([compute for _, compute in places.values()])
    guessed = np.array([model.estimated.get(str(kernel), 0.0) for kernel in kernels])
    of_kernel = errors.kernel**2 + guessed**2
    return (
        errors.network**2
        + errors.compute**2 * np.equal.outer(computes, computes)
        + of_kernel * np.equal.outer(kernels, kernels)
        + errors.site**2 * np.eye(len(places))
    )


def _compute(name: str) -> str:
    """Return how a candidate multiplies: candidates of one class share the error of its kernels."""
    candidate = Candidate.parse(name)
    if candidate.is_float:
        return candidate.name
    if not candidate.integer_compute:
        return "bf16"
    return "int8 rows" if candidate.dynamic else "int8"
