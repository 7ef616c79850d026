"""Cross terms against two sites quantized together, and their way into plans."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from metric_nets import Branches, Chain, Setting, setting
from operator_nets import CASES
from torch import Tensor

from mpq_compile.allocate import Allocation
from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.neighbours import near_pairs
from mpq_compile.sensitivity.pairwise import PairwiseMetric
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.solve import evaluate, solve
from mpq_compile.types import CostTable, SensitivityTable

NAMES = ("fp32", "w8a8", "w6a8", "w4a8")
FORMS = ("divergence", "gauss_newton")


def chain() -> Setting:
    torch.manual_seed(5)
    return setting(Chain(), (torch.randn(32, 5),))


def divergence_of(net: Setting, assignment: dict[str, str]) -> float:
    """Return the true divergence of an assignment, by running it."""
    graph = QuantizedGraph(net.network, net.calibration)
    part = Slice(start=0, batch=net.batches[0])
    (head,) = find_heads(graph, [part])
    exact = scores(graph, net, {})
    return float(head.divergence(exact, scores(graph, net, assignment)).mean())


def scores(graph: QuantizedGraph, net: Setting, assignment: dict[str, str]) -> Tensor:
    graph.assign(assignment)
    with torch.no_grad():
        return graph.module(*net.batches[0].inputs)[0].double().log_softmax(1).unsqueeze(2)


@pytest.mark.parametrize("form", FORMS)
def test_cross_terms_are_what_two_sites_lose_together(form: str) -> None:
    net = chain()
    table = net.measure(PairwiseMetric(form=form, scope="all"), NAMES)
    for (a, b), terms in table.pairs.items():
        for x, y in product(("w6a8", "w4a8"), repeat=2):
            alone = [divergence_of(net, {a: x}), divergence_of(net, {b: y})]
            together = divergence_of(net, {a: x, b: y})
            # The term's size is bounded by 2 √(L_a L_b); it is right to a small part of that.
            scale = 2 * (alone[0] * alone[1]) ** 0.5
            assert terms[x, y] == pytest.approx(together - sum(alone), abs=0.12 * scale)


@pytest.mark.parametrize("form", FORMS)
def test_no_assignment_has_a_negative_loss(form: str) -> None:
    """With all pairs, what is predicted of an assignment is a squared norm."""
    net = chain()
    table = net.measure(PairwiseMetric(form=form, scope="all"), NAMES)
    assert any(value < 0 for terms in table.pairs.values() for value in terms.values())
    assert minimum_over_choices(table, net) == pytest.approx(0.0, abs=1e-12)


def minimum_over_choices(table: SensitivityTable, net: Setting) -> float:
    """Return the least predicted loss of all assignments, by enumeration."""
    losses = []
    for names in product(NAMES, repeat=len(net.sites)):
        chosen = dict(zip(net.sites, names, strict=True))
        pairs = sum(t[chosen[a], chosen[b]] for (a, b), t in table.pairs.items())
        losses.append(sum(table.loss[s][n] for s, n in chosen.items()) + pairs)
    return min(losses)


def test_float_has_no_cross_terms() -> None:
    table = chain().measure(PairwiseMetric(), NAMES)
    assert table.pairs
    for terms in table.pairs.values():
        assert all(value == 0.0 for (x, y), value in terms.items() if "fp32" in (x, y))


def test_pairs_reach_the_problem_and_the_loss_of_a_plan() -> None:
    torch.manual_seed(0)
    net = setting(Branches(), (torch.randn(16, 3, 6, 6),))
    table = net.measure(PairwiseMetric(), NAMES)
    costs = {"size_bytes": {"fp32": 4.0, "w8a8": 1.0, "w6a8": 0.75, "w4a8": 0.5}}
    counted = {
        site.id: {
            name: {"size_bytes": costs["size_bytes"][name] * site.weight_count} for name in NAMES
        }
        for site in net.network.sites
    }
    allocation = Allocation(
        sites=net.network.sites,
        choices=dict.fromkeys(net.sites, NAMES),
        sensitivity=table,
        costs=CostTable(costs=counted),
    )
    size = 0.7 * sum(site.weight_count for site in net.network.sites)
    problem = allocation.problem({"size_bytes": size})
    assert {(pair.a, pair.b) for pair in problem.pairs} == set(table.pairs)
    best = solve(problem)
    losses = {}
    for names in product(NAMES, repeat=len(net.sites)):
        chosen = dict(zip(net.sites, names, strict=True))
        loss, usage = evaluate(problem, chosen)
        assert loss == pytest.approx(allocation.loss(chosen), abs=1e-12)
        if usage["size_bytes"] <= size:
            losses[names] = loss
    assert best.loss == pytest.approx(min(losses.values()))
    inverse = allocation.inverse_problem("size", best.loss * (1 + 1e-9), {}, None)
    assert solve(inverse).loss <= size


def test_pairs_of_tied_sites_add_to_their_common_candidate() -> None:
    case = CASES["tied"]
    net = setting(case.model(), case.inputs(8))
    table = net.measure(PairwiseMetric(scope="all"), ("w8a8", "w4a8"))
    costs = {site: {n: {"size_bytes": 1.0} for n in ("w8a8", "w4a8")} for site in net.sites}
    allocation = Allocation(
        sites=net.network.sites,
        choices=dict.fromkeys(net.sites, ("w8a8", "w4a8")),
        sensitivity=table,
        costs=CostTable(costs=costs),
    )
    problem = allocation.problem({})
    assert len(problem.groups) < len(net.sites)
    for name in ("w8a8", "w4a8"):
        loss, _ = evaluate(problem, {group.name: name for group in problem.groups})
        assert loss == pytest.approx(allocation.loss(dict.fromkeys(net.sites, name)))


def test_neighbours_of_a_residual_block() -> None:
    """The second branch takes the first as its residual; both read a, and c alone is read."""
    network = prepare(capture(Branches().eval(), torch.randn(1, 3, 6, 6)))
    a, b, c, fc = (site.id for site in network.sites)
    assert near_pairs(network) == [(a, b), (a, c), (b, c), (c, fc)]


def test_sites_of_one_block_are_neighbours() -> None:
    block = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    )
    model = torch.nn.Sequential(block, torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    network = prepare(capture(model, torch.randn(1, 4)))
    sites = [site.id for site in network.sites]
    near = near_pairs(network)
    assert (sites[0], sites[2]) in near  # the block's ends
    assert (sites[2], sites[3]) in near  # adjacent
    assert (sites[0], sites[4]) not in near
