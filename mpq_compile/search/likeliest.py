"""The assignment that a search ends with: the likeliest one, or the likeliest within a budget.

Without a budget each site takes its likeliest candidate [source]. A budget is kept exactly: the
log-probabilities add up, so the likeliest assignment within it is a multiple-choice knapsack, which
the exact solver answers [derived]. The likeliest assignment costs less than the mean one that the
search kept to the budget; what is left buys the bits that were least unlikely for their cost, one
site after the other [derived].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.passes.network import Network
from mpq_compile.sensitivity.base import Choices
from mpq_compile.solve import CandidateTerm, Group, Problem, solve
from mpq_compile.types import Candidate, Site

Scores = Mapping[str, Mapping[str, float]]


def bops_of(site: Site, name: str) -> float:
    """Return MACs · weight bits · activation bits of a candidate at a site."""
    candidate = Candidate.parse(name)
    return float(site.macs * candidate.weight_bits * candidate.activation_bits)


def assignment_bops(network: Network, assignment: Mapping[str, str]) -> int:
    """Return the BOPs of an assignment, for the batch of the example inputs."""
    return round(sum(bops_of(site, assignment[site.id]) for site in network.sites))


def check_bops(network: Network, choices: Choices, bops: float | None) -> None:
    """Raise ``InfeasibleBudgetError`` where the cheapest assignment is above ``bops``."""
    least = sum(min(bops_of(s, name) for name in choices[s.id]) for s in network.sites)
    if bops is not None and least > bops:
        raise InfeasibleBudgetError(
            f"bops budget {bops:.4g} is below {least:.4g}, the cheapest assignment",
            expected=f"at least {least:.4g} BOPs",
            found=f"{bops:.4g}",
            remedy="raise the budget, or allow cheaper candidates (candidates=[...])",
        )


def likeliest(network: Network, scores: Scores, bops: float | None) -> dict[str, str]:
    """Return the candidate of every site.

    Args:
        network: The prepared network.
        scores: Log-probability of each candidate by site; sites of one tie share theirs.
        bops: Bound on MACs · weight bits · activation bits, or None.

    Raises:
        InfeasibleBudgetError: No assignment is within it.
    """
    groups = []
    for name, members in _ties(network).items():
        row = scores[members[0].id]
        terms = (
            CandidateTerm(name=n, loss=-row[n], costs={"bops": _bops(members, n)}) for n in row
        )
        groups.append(Group(name=name, candidates=tuple(terms)))
    budget = {} if bops is None else {"bops": bops}
    solution = solve(Problem(groups=tuple(groups), budget=budget))
    if solution.status == "infeasible":
        check_bops(network, {site: list(row) for site, row in scores.items()}, bops)
    return {site.id: solution.assignment[site.group] for site in network.sites}


def spend(
    network: Network, scores: Scores, assignment: Mapping[str, str], bops: float
) -> dict[str, str]:
    """Return the assignment with more bits where ``bops`` has room for them, and nowhere fewer."""
    ties = _ties(network)
    chosen = {name: assignment[members[0].id] for name, members in ties.items()}
    while True:
        room = bops - sum(_bops(members, chosen[name]) for name, members in ties.items())
        steps = []
        for name, members in ties.items():
            row, now = scores[members[0].id], chosen[name]
            for candidate in row:
                extra = _bops(members, candidate) - _bops(members, now)
                if 0 < extra <= room and _has_no_fewer_bits(candidate, now):
                    steps.append(((row[now] - row[candidate]) / extra, name, candidate))
        if not steps:
            return {site.id: chosen[site.group] for site in network.sites}
        _, name, candidate = min(steps)
        chosen[name] = candidate


def _ties(network: Network) -> dict[str, list[Site]]:
    ties: dict[str, list[Site]] = {}
    for site in network.sites:
        ties.setdefault(site.group, []).append(site)
    return ties


def _bops(members: Sequence[Site], name: str) -> float:
    return sum(bops_of(site, name) for site in members)


def _has_no_fewer_bits(name: str, than: str) -> bool:
    new, old = Candidate.parse(name), Candidate.parse(than)
    return new.weight_bits >= old.weight_bits and new.activation_bits >= old.activation_bits
