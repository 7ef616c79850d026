"""The public interface: plans within budgets, and errors that say what to do instead."""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.quant.observers import AUTO, OBSERVERS
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.history import read_history

ANALYTIC = "bit_serial"
WIDE = ["w8a8", "w4a8", "w2a8"]


class Classifier(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 16, 3, stride=2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return Classifier().eval()


X = torch.randn(40, 3, 9, 9, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(1))
SITES = ("conv1:conv2d#0", "conv2:conv2d#0", "fc:linear#0")


def plan(**options: Any) -> mpq.Plan:
    options = {"target": ANALYTIC, "candidates": WIDE, **options}
    return mpq.plan(model(), X[:1], options.pop("calibration", [X]), **options)


def assign(assignment: Any, **options: Any) -> mpq.CompiledNetwork:
    return mpq.assign(model(), X[:1], [X], assignment, **options)


# Plans


def test_without_budget_the_most_accurate_is_taken() -> None:
    found = plan()
    assert set(found.assignment) == set(SITES)
    assert set(found.assignment.values()) == {"w8a8"}
    assert found.certificate["status"] == "optimal" and found.certificate["gap"] <= 1e-9


def test_a_plan_survives_json() -> None:
    found = plan(budget={"avg_bits": 5})
    text = json.dumps(found.to_json(), allow_nan=False)
    assert mpq.Plan.from_json(json.loads(text)).to_json() == json.loads(text)


def test_the_same_input_gives_the_same_plan() -> None:
    first, second = plan(budget={"avg_bits": 5}), plan(budget={"avg_bits": 5})
    assert first.assignment == second.assignment and first.loss == second.loss


@pytest.mark.parametrize("bits", [2, 3, 4.5, 6, 8])
def test_average_bits_are_bounded(bits: float) -> None:
    found = plan(budget=mpq.Budget(avg_bits=bits))
    assert found.predicted.avg_bits <= bits * (1 + 1e-9)
    weights = {s.id: s.weight_count for s in prepare(capture(model(), X[:1])).sites}
    mean = sum(weights[s] * int(c[1]) for s, c in found.assignment.items()) / sum(weights.values())
    assert found.predicted.avg_bits == pytest.approx(mean)


def test_a_tighter_budget_loses_more() -> None:
    losses = [plan(budget={"avg_bits": bits}).loss for bits in (8, 6, 4, 3, 2)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_size_latency_energy_and_bops_are_bounded_together() -> None:
    widest, narrowest = plan().predicted, plan(candidates=["w2a8"]).predicted

    def between(name: str) -> float:
        return 0.6 * getattr(widest, name) + 0.4 * getattr(narrowest, name)

    budget = mpq.Budget(
        size_mb=between("size_bytes") * 1e-6,
        latency_ms=between("latency_ms"),
        bops=between("bops"),
        energy_mj=between("energy_mj"),
    )
    found = plan(budget=budget).predicted
    assert found.size_bytes <= between("size_bytes") + 0.5
    for name in ("latency_ms", "bops", "energy_mj"):
        assert getattr(found, name) <= between(name) * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["exact", "greedy", "milp"])
def test_every_solver_plans(solver: str) -> None:
    found = plan(budget={"avg_bits": 4}, solver=solver)
    assert found.predicted.avg_bits <= 4 and found.solver == solver
    assert found.loss >= plan(budget={"avg_bits": 4}).loss * (1 - 1e-9)


def test_taylor_needs_labels() -> None:
    assert plan(metric="taylor", calibration=[(X, Y)]).metric == "taylor"
    with pytest.raises(mpq.CalibrationError, match="needs labels"):
        plan(metric="taylor")


@pytest.mark.parametrize("observer", [AUTO, *OBSERVERS])
def test_every_observer_plans(observer: str) -> None:
    assert set(plan(observer=observer).assignment) == set(SITES)


def test_constraints_pin_sites() -> None:
    found = plan(
        budget={"avg_bits": 5},
        constraints={"conv1": "w8a8", "re:conv2.*": ["w2a8"], "fc:linear#0": ["w4a8", "w2a8"]},
    )
    assert found.assignment[SITES[0]] == "w8a8" and found.assignment[SITES[1]] == "w2a8"
    assert found.assignment[SITES[2]] in ("w4a8", "w2a8")


def test_the_path_of_a_module_pins_all_sites_in_it() -> None:
    net = nn.Sequential(model(), nn.Linear(5, 4))
    pinned = {"0": "w8a8", "1": "w2a8"}
    found = mpq.plan(net.eval(), X[:1], [X], ANALYTIC, candidates=WIDE, constraints=pinned)
    assert list(found.assignment.values()) == ["w8a8"] * 3 + ["w2a8"]


def test_a_plan_is_an_assignment() -> None:
    given = plan(budget={"avg_bits": 4})
    assert torch.equal(assign(given)(X), assign(given.assignment)(X))


def test_max_drop_without_labels_finds_the_smallest() -> None:
    strict = plan(budget={"max_drop": 5.0}, minimize="size").predicted.size_bytes
    loose = plan(budget={"max_drop": 100.0}, minimize="size").predicted.size_bytes
    assert loose <= strict <= plan().predicted.size_bytes


def test_max_drop_is_measured_by_the_users_function() -> None:
    seen = []

    def evaluate(network: Any) -> float:
        seen.append(network)
        exact = model()(X).argmax(1)
        return 100 * float((network(X).argmax(1) == exact).float().mean())

    found = plan(budget={"max_drop": 10.0}, minimize="size", evaluate=evaluate)
    assert seen and "measured drop" in " ".join(found.notes)
    assert evaluate(model()) == 100.0
    assert not any("calibration samples, which" in note for note in found.notes)


def test_a_plan_says_what_a_drop_was_measured_on_and_which_solver_was_not_used() -> None:
    plain = plan(budget={"max_drop": 10.0}, minimize="size", evaluate="kl")
    other = plan(budget={"max_drop": 10.0}, minimize="size", evaluate="kl", solver="ppso")
    assert other.assignment == plain.assignment and plain.solver == other.solver == "exact"
    for found, solvers in ((plain, 0), (other, 1)):
        assert sum("10 samples that nothing was fitted to" in note for note in found.notes) == 1
        assert sum("'ppso' was not used" in note for note in found.notes) == solvers


def test_a_named_drop_is_measured_on_samples_that_nothing_else_sees() -> None:
    def losses(found: mpq.Plan) -> list[float]:
        return [row["loss"] for row in found.table]

    bounded = {"budget": {"max_drop": 10.0}, "minimize": "size", "evaluate": "kl"}
    apart = torch.arange(len(X)) % 4 == 3
    found, kept = plan(**bounded), plan(calibration=[X[~apart]])
    assert losses(found) == losses(kept)
    assert Recipe.of_plan(found.provenance).held_out == 0.25
    assert Recipe.of_plan(kept.provenance).held_out is None
    everything = plan(**bounded, held_out=0.0)
    assert losses(everything) == losses(plan()) != losses(found)
    assert sum("calibration samples, which" in note for note in everything.notes) == 1


def test_more_than_half_of_the_samples_cannot_be_held_out() -> None:
    with pytest.raises(mpq.CalibrationError) as caught:
        plan(held_out=0.7)
    assert caught.value.where == "held_out"


# Compiling


def test_a_plan_is_compiled_on_this_machine() -> None:
    network = mpq.compile(
        model(), X[:1], [X], budget=mpq.Budget(size_mb=0.0012, latency_ms=1000.0), candidates=WIDE
    )
    assert network.size_bytes <= 1200
    assert network.plan.predicted.size_bytes <= 1200
    assert network.verification is not None
    assert network.verification.status == "accepted" and network.verification.within_budget
    assert network.verification.latency_ms_upper95 <= 1000
    recorded = read_history(network.folder)
    assert recorded is not None and recorded.time
    last = recorded.comparisons[-1]
    assert (last.kind, last.name, last.status) == ("round", "round 1", "accepted")
    assert last.measured_ms == network.verification.latency_ms
    assert last.predicted_ms == network.plan.predicted.latency_ms
    # The kernels of w8a8 and w4a8 are one in a convolution: fewer networks than candidates.
    anchors = recorded.comparisons[:-1]
    assert anchors and {row.kind for row in anchors} == {"anchor"}
    for row in recorded.comparisons:
        assert row.predicted_ms_lower95 < row.predicted_ms < row.predicted_ms_upper95
        assert row.measured_ms_lower95 <= row.measured_ms <= row.measured_ms_upper95
    assert torch.equal(network(X), network.reference(X))
    rows = {row.site: row for row in network.audit}
    for site, name in network.plan.assignment.items():
        assert (rows[site].requested, rows[site].stored_bits) == (name, int(name[1]))


def test_a_given_plan_is_built_as_it_is() -> None:
    given = plan(budget={"avg_bits": 4})
    network = mpq.compile(model(), X[:1], [X], plan=given, verify=False)
    assert network.plan.assignment == given.assignment
    assert torch.equal(network(X), network.reference(X))


def test_a_given_plan_keeps_how_its_weights_are_quantized() -> None:
    ways = [("affine", "gptq"), ("affine", "nearest"), ("none", "nearest")]
    outputs = []
    for correction, rounding in ways:
        how = {"correction": correction, "rounding": rounding}
        given = plan(budget={"avg_bits": 4}, **how)
        outputs.append(mpq.compile(model(), X[:1], [X], plan=given, verify=False)(X))
        assert torch.equal(outputs[-1], assign(given.assignment, **how)(X))
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.equal(one, other)


def test_a_plan_of_another_model_is_refused() -> None:
    given = plan()
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 81, 2)).eval()
    with pytest.raises(mpq.PlanError, match="unknown site"):
        mpq.compile(other, X[:1], [X], plan=given, verify=False)


def test_the_training_model_is_left_alone() -> None:
    torch.manual_seed(0)
    network = Classifier().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    mpq.plan(network, X[:1], [X], target=ANALYTIC, candidates=["w8a8"])
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


# Errors: class, and a remedy that helps


@pytest.mark.parametrize(
    ("options", "kind", "message", "remedy"),
    [
        ({"calibration": []}, mpq.CalibrationError, "empty", "list of batches"),
        ({"calibration": iter(())}, mpq.CalibrationError, "empty", "fresh DataLoader"),
        ({"calibration": [X * float("nan")]}, mpq.CalibrationError, "not finite", "repair"),
        ({"calibration": [X[:, :, 1:]]}, mpq.CalibrationError, "wrong input shape", "batch first"),
        ({"calibration": [X.half()]}, mpq.CalibrationError, "wrong input dtype", "torch.float32"),
        ({"target": "bit_serail"}, mpq.ProfileError, "unknown profile", "'bit_serial'"),
        ({"target": "/nowhere/x.yaml"}, mpq.ProfileError, "x.yaml", ""),
        ({"metric": "sqrn"}, mpq.MpqError, "unknown metric", "'sqnr'"),
        ({"solver": "exakt"}, mpq.MpqError, "unknown solver", "'exact'"),
        ({"observer": "minmx"}, mpq.CalibrationError, "unknown observer", "'minmax'"),
        ({"candidates": ["w9a8"]}, mpq.MpqError, "w9a8", ""),
        ({"candidates": ["w4a8x"]}, mpq.MpqError, "w4a8x", ""),
        ({"candidates": ["fp32"]}, mpq.ProfileError, "candidate", ""),
        ({"candidates": []}, mpq.ProfileError, "candidate", ""),
        ({"constraints": {"conv3": "w8a8"}}, mpq.PlanError, "matches no site", "'conv"),
        ({"constraints": {"re:[": "w8a8"}}, mpq.PlanError, "regular expression", "pattern"),
        ({"constraints": {"conv1": "w7a7"}}, mpq.PlanError, "no candidate", "candidates="),
        ({"constraints": {"conv1": "int8"}}, mpq.PlanError, "not a candidate", "correct"),
        ({"constraints": ["conv1"]}, mpq.PlanError, "no constraints", "for instance"),
        ({"constraints": {"conv1": None}}, mpq.PlanError, "no constraints", "for instance"),
        ({"candidates": [8, 4]}, mpq.PlanError, "8 is not a candidate", "correct"),
        ({"budget": {"size": 1}}, mpq.PlanError, "unknown budget", "mpq.Budget"),
        ({"budget": {"size_mb": -1}}, mpq.PlanError, "size_mb", "number"),
        ({"budget": {"size_mb": "1"}}, mpq.PlanError, "size_mb", "number"),
        ({"minimize": "size"}, mpq.PlanError, "max_drop", "max_drop"),
        (
            {"minimize": "sise", "budget": {"max_drop": 1}},
            mpq.PlanError,
            "unknown objective",
            "'size'",
        ),
    ],
)
def test_wrong_arguments(
    options: dict[str, Any], kind: type[Exception], message: str, remedy: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        plan(**options)
    assert isinstance(caught.value, mpq.MpqError)
    assert caught.value.remedy and remedy in str(caught.value.remedy)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("budget", "attainable"),
    [
        ({"size_mb": 1e-5}, "size"),
        ({"latency_ms": 1e-9}, "latency"),
        ({"bops": 10}, "BOPs"),
        ({"avg_bits": 1}, "average weight"),
        ({"energy_mj": 1e-12}, "energy"),
        ({"size_mb": 1e-5, "avg_bits": 8}, "size"),
    ],
)
def test_an_infeasible_budget_says_what_is_attainable(
    budget: dict[str, float], attainable: str
) -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match=f"{attainable} budget") as caught:
        plan(budget=budget)
    message = str(caught.value)
    assert "the cheapest assignment (all w2a8)" in message
    assert "raise the budget" in message and caught.value.exit_code == 1
    # What is called attainable is attainable.
    least = float(str(caught.value.expected).split(f"{attainable} ")[1].split()[0])
    assert plan(budget={next(iter(budget)): least * (1 + 1e-3)}).assignment


@pytest.mark.parametrize("name", ["size_mb", "bops", "latency_ms", "energy_mj", "avg_bits"])
@pytest.mark.parametrize("cheap", ["w2a8", "w3a8", "w5a8", "w7a8"])
def test_the_budget_that_an_error_names_is_enough(cheap: str, name: str) -> None:
    """Rounded to nearest, every other one would be too little."""
    options = {"candidates": [cheap, "w8a8"], "metric": "roundoff", "observer": "minmax"}
    with pytest.raises(mpq.InfeasibleBudgetError) as caught:
        plan(budget={name: 1e-9}, **options)
    told = re.search(r"at least: [\w ]*? ([\d.e+-]+) \w+$", str(caught.value.expected))
    assert told is not None, caught.value.expected
    least = float(told[1])
    assert set(plan(budget={name: least}, **options).assignment.values()) == {cheap}
    with pytest.raises(mpq.InfeasibleBudgetError):
        plan(budget={name: 0.998 * least}, **options)


def test_activations_that_do_not_fit() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match="activations") as caught:
        plan(budget={"peak_activation_mb": 1e-6})
    assert "raise peak_activation_mb" in str(caught.value)
    assert plan(budget={"peak_activation_mb": 1.0}).predicted.peak_activation_bytes <= 1e6


def test_a_drop_that_cannot_be_kept() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match="drop cannot be kept") as caught:
        plan(
            budget={"max_drop": 0.0},
            minimize="size",
            candidates=["w2a2"],
            evaluate=lambda net: float(isinstance(net, Classifier)),
        )
    assert "max_drop" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("assignment", "message", "remedy"),
    [
        ({"conv1:conv2d#1": "w8a8"}, "unknown site", SITES[0]),
        ({SITES[0]: "w8a8"}, "leaves sites out", "name them too"),
        ("w1a8", "not a candidate", "correct the name"),
        ("int8", "not a candidate", "correct the name"),
        (dict.fromkeys(SITES, "w88"), "not a candidate", "correct the name"),
    ],
)
def test_wrong_assignments(assignment: Any, message: str, remedy: str) -> None:
    with pytest.raises(mpq.PlanError, match=message) as caught:
        assign(assignment)
    assert remedy in str(caught.value.remedy)


def test_tied_sites_must_agree() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.fc(x)))

    x = torch.randn(4, 6)
    names = {"fc:linear#0": "w8a8", "fc:linear#1": "w4a8"}
    with pytest.raises(mpq.PlanError, match="share a candidate"):
        mpq.assign(Twice().eval(), x[:1], [x], names)
    found = mpq.plan(Twice().eval(), x[:1], [x], target=ANALYTIC, candidates=WIDE)
    assert len(set(found.assignment.values())) == 1


def test_a_candidate_that_the_target_lacks() -> None:
    with pytest.raises(mpq.MpqError) as caught:
        assign("w4a8g64")
    assert caught.value.remedy


def test_a_model_without_sites() -> None:
    with pytest.raises(mpq.PlanError, match="nothing to quantize"):
        mpq.plan(nn.ReLU(), X[:1], [X], target=ANALYTIC)


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(mpq.CaptureError, match="cannot trace"):
        mpq.plan(Branching(), X[:1], [X], target=ANALYTIC)


def test_errors_are_json() -> None:
    with pytest.raises(mpq.PlanError) as caught:
        plan(constraints={"conv3": "w8a8"})
    data = json.loads(json.dumps(caught.value.to_json()))
    assert data["error"] == "PlanError" and data["remedy"] and data["expected"] and data["found"]


def test_names_of_the_package() -> None:
    for name in mpq.__all__:
        assert getattr(mpq, name) is not None
    with pytest.raises(AttributeError):
        mpq.nothing  # noqa: B018
