"""Sensitivity + cost + budget → problem → solution. Imports neither torch nor tvm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mpq_compile.errors import InfeasibleBudgetError, MpqError, PlanError, nearest
from mpq_compile.infeasibility import UNITS, infeasible
from mpq_compile.registry import SOLVERS
from mpq_compile.solve.problem import CandidateTerm, Group, Pair, Problem, Solution
from mpq_compile.types import Budget, Candidate, CostTable, SensitivityTable, Site

Choices = Mapping[str, Sequence[str]]

# Budget field → (axis of the cost table, factor from the field's unit to the axis's).
AXES: Mapping[str, tuple[str, float]] = {
    "latency_ms": ("latency_us", 1e3),
    "size_mb": ("size_bytes", 1e6),
    "bops": ("bops", 1.0),
    "energy_mj": ("energy_mj", 1.0),
}
OBJECTIVES = ("latency", "size", "bops", "energy")
OBJECTIVE_AXIS = {
    "latency": "latency_us",
    "size": "size_bytes",
    "bops": "bops",
    "energy": "energy_mj",
}
# Until it is measured, the 95th percentile is taken to lie this far above the median.
P95_RATIO = 1.15


def constrained(
    sites: Sequence[Site], choices: Choices, constraints: Mapping[str, str | Sequence[str]] | None
) -> dict[str, list[str]]:
    """Return ``choices`` narrowed by the user's constraints.

    A key is a site id, the path of a module, which means all sites in it, or ``re:`` and a pattern
    that matches an id or a site's path as a whole; a value is a candidate or a list of them.

    Raises:
        PlanError: A key matches no site, or a value leaves a site without a candidate.
    """
    narrowed = {site: list(names) for site, names in choices.items()}
    for key, wanted in _pinned(constraints).items():
        matched = [site for site in sites if matches_site(key, site)]
        if not matched:
            raise PlanError(
                f"constraint {key!r} matches no site",
                expected="a site id, a module path or re:PATTERN",
                found=repr(key),
                remedy=nearest(key, list(dict.fromkeys(site.path for site in sites))),
            )
        for site in matched:
            narrowed[site.id] = _kept(site, narrowed[site.id], wanted)
    return narrowed


def _pinned(constraints: Mapping[str, str | Sequence[str]] | None) -> dict[str, list[str]]:
    """Return the candidates that each key of the constraints leaves."""
    found: dict[str, list[str]] = {}
    try:
        for key, value in (constraints or {}).items():
            found[key] = [value] if isinstance(value, str) else list(value)
    except (AttributeError, TypeError) as error:
        raise PlanError(
            "these are no constraints",
            where="constraints",
            expected="a mapping from sites to a candidate or to several",
            found=repr(constraints)[:80],
            remedy="write for instance {'conv1': 'w8a8', 're:.*fc': ['w8a8', 'w4a8']}",
        ) from error
    for name in (name for names in found.values() for name in names):
        Candidate.parse(name)
    return found


def _kept(site: Site, names: list[str], wanted: list[str]) -> list[str]:
    kept = [name for name in names if name in wanted]
    if not kept:
        raise PlanError(
            "the constraint leaves no candidate",
            where=site.id,
            expected=f"one of {', '.join(names)}",
            found=", ".join(wanted),
            remedy="choose a candidate that the target supports here, or add it to candidates=",
        )
    return kept


def matches_site(key: str, site: Site) -> bool:
    """Tell whether a constraint's key (a site id, a module path or ``re:PATTERN``) means a site."""
    if key.startswith("re:"):
        try:
            pattern = re.compile(key[3:])
        except re.error as error:
            raise PlanError(
                "a constraint is not a regular expression",
                where=key,
                found=str(error),
                remedy="correct the pattern after re:",
            ) from error
        return bool(pattern.fullmatch(site.id) or pattern.fullmatch(site.path))
    return key in (site.id, site.path) or site.path.startswith(f"{key}.")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Everything a solver needs, and what its answer is read with.

    Args:
        sites: Sites of the network.
        choices: Candidates of each.
        sensitivity: Loss of each (site, candidate).
        costs: Costs of each, and transitions.
        p95_ratio: 95th percentile over median of a call's latency.
    """

    sites: Sequence[Site]
    choices: Choices
    sensitivity: SensitivityTable
    costs: CostTable
    p95_ratio: float = P95_RATIO

    def limits(self, budget: Budget) -> dict[str, float]:
        """Return the budget in the axes of the cost table."""
        given = budget.given()
        limits = {
            axis: given[name] * factor for name, (axis, factor) in AXES.items() if name in given
        }
        if self.p95_binds(budget):
            limits["latency_us"] = given["latency_p95_ms"] * 1e3 / self.p95_ratio
        self._check_axes(limits)
        limits = {
            axis: limit - self.costs.overhead.get(axis, 0.0) for axis, limit in limits.items()
        }
        if "avg_bits" in given:
            limits["weight_bits"] = given["avg_bits"] * sum(s.stored_weights for s in self.sites)
        return limits

    def p95_binds(self, budget: Budget) -> bool:
        """Tell whether the bound on the 95th percentile is what bounds the median."""
        p95, median = budget.latency_p95_ms, budget.latency_ms
        return p95 is not None and (median is None or p95 / self.p95_ratio < median)

    def _check_axes(self, limits: Iterable[str]) -> None:
        known = next(iter(next(iter(self.costs.costs.values())).values()))
        for axis in limits:
            if axis not in known:
                raise PlanError(
                    f"the target has no figures for {UNITS[axis][0]}",
                    expected="a target whose profile gives them, such as bit_serial for energy",
                    found=f"a budget on {axis}",
                    remedy="leave this budget out, or add the figures to a profile of your own",
                )

    def groups(self) -> dict[str, list[Site]]:
        """Return the sites of each tie, by the id of its first site."""
        ties: dict[str, list[Site]] = {}
        for site in self.sites:
            ties.setdefault(site.group, []).append(site)
        return {members[0].id: members for members in ties.values()}

    def problem(self, limits: Mapping[str, float], peak_bytes: float | None = None) -> Problem:
        """Return min loss subject to ``limits``.

        ``peak_bytes`` forbids candidates whose own input and output exceed it.
        """
        return Problem(
            groups=tuple(
                Group(name=name, candidates=tuple(self.terms(members, peak_bytes)))
                for name, members in self.groups().items()
            ),
            budget=dict(limits),
            pairs=(*self._pairs(limits, peak_bytes), *self._loss_pairs(peak_bytes)),
        )

    def tradeoff_problem(
        self,
        axes: str | Sequence[str],
        limits: Mapping[str, float],
        peak_bytes: float | None = None,
    ) -> Problem:
        """Return min loss subject to ``limits``, with the pair costs of ``axes`` too."""
        columns = [axes] if isinstance(axes, str) else list(axes)
        self._check_axes(columns)
        wanted = {**limits, **dict.fromkeys(columns, 0.0)}
        return replace(self.problem(wanted, peak_bytes), budget=dict(limits))

    def inverse_problem(
        self, objective: str, loss: float, limits: Mapping[str, float], peak_bytes: float | None
    ) -> Problem:
        """Return min cost on ``objective`` subject to Σ loss ≤ ``loss`` and ``limits``."""
        axis = OBJECTIVE_AXIS[objective]
        plain = self.problem({**limits, axis: 0.0}, peak_bytes)
        groups = tuple(
            Group(
                name=group.name,
                candidates=tuple(
                    CandidateTerm(
                        name=term.name,
                        loss=term.costs[axis],
                        costs={**term.costs, "loss": term.loss},
                    )
                    for term in group.candidates
                ),
            )
            for group in plain.groups
        )
        pairs = tuple(_inverted(pair, axis, limits) for pair in plain.pairs)
        return Problem(groups=groups, budget={**limits, "loss": loss}, pairs=pairs)

    def names_of(self, members: Sequence[Site], peak_bytes: float | None) -> list[str]:
        """Return the candidates that all sites of a tie have."""
        common = [
            name
            for name in self.choices[members[0].id]
            if all(name in self.choices[site.id] for site in members)
        ]
        if peak_bytes is None:
            return common
        table = self.costs.costs
        return [
            n for n in common if all(table[s.id][n]["peak_bytes"] <= peak_bytes for s in members)
        ]

    def terms(self, members: Sequence[Site], peak_bytes: float | None) -> list[CandidateTerm]:
        """Return what each candidate of a tie loses and costs."""
        names = self.names_of(members, peak_bytes)
        if not names:
            raise self._nothing_offered(members, peak_bytes)
        return [self._term(members, name) for name in names]

    def _nothing_offered(self, members: Sequence[Site], peak_bytes: float | None) -> MpqError:
        """Return why a tie has no candidate, with what a bound on activations would have to be."""
        if peak_bytes is None or not self.names_of(members, None):
            return PlanError(
                "sites that share a weight have no candidate in common",
                where=members[0].id,
                expected="one that each of them offers",
                found="; ".join(f"{s.id}: {', '.join(self.choices[s.id])}" for s in members),
                remedy="offer more candidates, or loosen the constraints",
            )
        least = max(map(self._least_peak, self.groups().values())) / 1e6
        return InfeasibleBudgetError(
            "no candidate of a site fits the budget for activations",
            where=members[0].id,
            expected=f"peak_activation_mb of at least {least:g}: what the largest site needs",
            found=f"{peak_bytes / 1e6:g}",
            remedy="raise peak_activation_mb",
        )

    def _least_peak(self, members: Sequence[Site]) -> float:
        table, names = self.costs.costs, self.names_of(members, None)
        return min((max(table[s.id][n]["peak_bytes"] for s in members) for n in names), default=0.0)

    def _term(self, members: Sequence[Site], name: str) -> CandidateTerm:
        entries = [self.costs.costs[site.id][name] for site in members]
        return CandidateTerm(
            name=name,
            loss=self._loss_of({site.id: name for site in members}),
            costs={axis: sum(e[axis] for e in entries) for axis in entries[0]},
        )

    def _loss_pairs(self, peak_bytes: float | None) -> list[Pair]:
        """Return what sites of different groups lose together."""
        group_of = {s.id: name for name, members in self.groups().items() for s in members}
        names = {n: self.names_of(m, peak_bytes) for n, m in self.groups().items()}
        pairs = []
        for (a, b), entry in self.sensitivity.pairs.items():
            first, second = group_of[a], group_of[b]
            if first == second or not any(entry.values()):
                continue
            matrix = tuple(tuple(entry[x, y] for y in names[second]) for x in names[first])
            pairs.append(Pair(a=first, b=second, loss=matrix))
        return pairs

    def _pairs(self, limits: Mapping[str, float], peak_bytes: float | None) -> list[Pair]:
        if "latency_us" not in limits:
            return []
        group_of = {s.id: name for name, members in self.groups().items() for s in members}
        names = {n: self.names_of(m, peak_bytes) for n, m in self.groups().items()}
        pairs = []
        for (a, b), entry in self.costs.transitions.items():
            first, second = group_of[a], group_of[b]
            if first == second or not any(entry.values()):
                continue
            matrix = tuple(
                tuple(entry[_format(x), _format(y)] for y in names[second]) for x in names[first]
            )
            pairs.append(Pair(a=first, b=second, costs={"latency_us": matrix}))
        return pairs

    def expand(self, solution: Solution) -> dict[str, str]:
        """Return the candidate of every site."""
        return self.spread(solution.assignment)

    def spread(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return the candidate of every site from that of every tie."""
        return {
            site.id: chosen[name] for name, members in self.groups().items() for site in members
        }

    def usage(self, assignment: Mapping[str, str]) -> dict[str, float]:
        """Return the total of every axis, transitions and overhead included."""
        totals: dict[str, float] = {}
        for site, name in assignment.items():
            for axis, value in self.costs.costs[site][name].items():
                totals[axis] = totals.get(axis, 0.0) + value
        if "latency_us" in totals:
            changes = sum(
                entry[_format(assignment[a]), _format(assignment[b])]
                for (a, b), entry in self.costs.transitions.items()
            )
            totals["latency_us"] += changes
        for axis, value in self.costs.overhead.items():
            totals[axis] = totals.get(axis, 0.0) + value
        return totals

    def loss(self, assignment: Mapping[str, str]) -> float:
        """Return the sum of the sites' losses, and of what pairs of them lose together."""
        return self._loss_of(assignment)

    def _loss_of(self, assignment: Mapping[str, str]) -> float:
        """Return the loss of some sites among themselves."""
        table = self.sensitivity
        alone = sum(table.loss[site][name] for site, name in assignment.items())
        if len(assignment) == 1:
            return alone
        return alone + sum(
            entry[assignment[a], assignment[b]]
            for (a, b), entry in table.pairs.items()
            if a in assignment and b in assignment
        )


def _inverted(pair: Pair, axis: str, limits: Mapping[str, float]) -> Pair:
    """Return the pair's terms with the loss as a cost, and the cost on ``axis`` as the loss."""
    costs = {name: matrix for name, matrix in pair.costs.items() if name == axis or name in limits}
    if pair.loss is not None:
        costs["loss"] = pair.loss
    return Pair(a=pair.a, b=pair.b, loss=costs.get(axis), costs=costs)


def _format(name: str) -> str:
    return Candidate.parse(name).input_format


def solve_allocation(
    allocation: Allocation, budget: Budget, solver: str, time_limit_s: float | None = None
) -> Solution:
    """Solve min loss within ``budget``.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message says what each budget could be.
    """
    limits = allocation.limits(budget)
    problem = allocation.problem(limits, budget.peak_activation_bytes)
    solution: Solution = SOLVERS.load(solver)(problem, time_limit_s=time_limit_s)
    if solution.status == "infeasible":
        raise infeasible(allocation, budget, limits, solution)
    return with_problem(solution, problem)


def with_problem(solution: Solution, problem: Problem, **more: str) -> Solution:
    """Return a solution whose certificate holds its problem: what it proves can be checked."""
    certificate = {**solution.certificate, **more, "problem": problem.to_json()}
    return replace(solution, certificate=certificate)
