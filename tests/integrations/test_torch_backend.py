"""``torch.compile(model, backend="mpq")``: what it computes, and what it refuses."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_nets import (
    DATA,
    QUICK,
    Broken,
    Plain,
    Whole,
    X,
    built,
    compiled_by,
    images,
    nothing_compiled,  # noqa: F401 - for every test
)
from torch import Tensor, nn

import mpq_compile as mpq


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return built(Plain)


@pytest.fixture(scope="module")
def artifact(plain: nn.Module) -> mpq.CompiledNetwork:
    return mpq.assign(plain, X, DATA, "w4a8", rounding="nearest", tuned=False)


def test_it_equals_the_artifact_at_any_batch(
    plain: nn.Module, artifact: mpq.CompiledNetwork
) -> None:
    compiled = compiled_by(plain, assignment="w4a8")
    for count in (1, 5, 40, 1):
        x = images(count, seed=count)
        assert torch.equal(compiled(x), artifact(x))
    assert [len(part.shapes) for part in mpq.explain(compiled).parts] == [1]


@pytest.mark.parametrize("by_context", [False, True])
def test_the_batch_is_free_where_all_calls_had_the_same(plain: nn.Module, by_context: bool) -> None:
    """Dynamo writes the first batch into its graph; the network takes others all the same."""
    first, *_ = batches = list(DATA[0].split(8))
    expected = mpq.assign(plain, first, batches, "w4a8", rounding="nearest", tuned=False)
    compiled = compiled_by(plain, None if by_context else batches, assignment="w4a8")
    with mpq.calibrating(compiled) if by_context else nullcontext():
        for batch in batches if by_context else [first]:
            compiled(batch)
    for count in (8, 5, 1):
        x = images(count, seed=count)
        assert torch.equal(compiled(x), expected(x))
    assert [part.shapes for part in mpq.explain(compiled).parts] == [[[[8, 3, 8, 8]]]]


class Branching(nn.Module):
    """A branch that depends on the mean over all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 3]."""
        x = self.conv(x).relu()
        if x.mean() > 0:
            x = 2 * x
        return self.head(x.mean((2, 3)))


def test_what_crosses_samples_is_a_network_of_its_own_batch() -> None:
    model = built(Branching)
    compiled = compiled_by(model, assignment="w8a8")
    for count in (2, 5):
        x = images(count, seed=count)
        assert (compiled(x) - model(x)).norm() < 0.05 * model(x).norm()
    first, second = mpq.explain(compiled).parts
    assert first.status == second.status == "compiled"
    assert first.shapes == [[[2, 3, 8, 8]], [[5, 3, 8, 8]]] and not first.dynamic_batch
    assert second.dynamic_batch


def test_floats_of_modules_that_dynamo_passes_as_arguments(plain: nn.Module) -> None:
    """With dynamic=True a batch norm's eps and momentum are arguments: their values count."""
    model = copy.deepcopy(plain)
    assert isinstance(model.norm, nn.BatchNorm2d)
    expected = mpq.assign(model, X, DATA, "w8a8", rounding="nearest", tuned=False)
    asked = {**QUICK, "calibration": DATA, "assignment": "w8a8"}
    compiled = torch.compile(model, backend="mpq", dynamic=True, options=asked)
    for count in (2, 5):
        x = images(count, seed=count)
        assert torch.equal(compiled(x), expected(x))
    model.norm.eps = 0.5
    with pytest.warns(RuntimeWarning, match="eager PyTorch"):
        assert torch.equal(compiled(X), model(X))
    model.norm.eps = 1e-5
    assert torch.equal(compiled(X), expected(X))
    assert [part.status for part in mpq.explain(compiled).parts] == ["compiled", "eager"]


class Fixed(nn.Module):
    """Four samples at a time, whatever it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[4, 2, 4] → [4, 8]."""
        return self.head(x.reshape(4, 8)).relu()


def test_a_batch_that_the_model_fixes_is_kept() -> None:
    model, x = built(Fixed), torch.rand(4, 2, 4)
    compiled = compiled_by(model, [x], assignment="w8a8")
    assert (compiled(x) - model(x)).norm() < 0.05 * model(x).norm()
    [part] = mpq.explain(compiled).parts
    assert part.shapes == [[[4, 2, 4]]] and not part.dynamic_batch


def test_a_plan_fits_both_ways(
    plain: nn.Module, artifact: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    """Site ids are the same from torch.export and from Dynamo: a plan and its file serve both."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(artifact.plan.to_json()), encoding="utf-8")
    compiled = torch.compile(
        plain,
        backend="mpq",
        options={"plan": str(path), "calibration": DATA, "tuned": False, "verify": False},
    )
    assert torch.equal(compiled(X), artifact(X))
    chosen = mpq.explain(compiled).plan.assignment
    assert chosen == artifact.plan.assignment
    again = mpq.assign(plain, X, DATA, chosen, rounding="nearest", tuned=False)
    assert torch.equal(again(X), artifact(X))


def test_a_budget_is_that_of_mpq_plan(plain: nn.Module) -> None:
    asked: dict[str, Any] = {
        "target": "bit_serial",
        "budget": {"avg_bits": 6.0},
        "candidates": ["w8a8", "w4a8"],
        "tuned": False,
    }
    plan = mpq.plan(plain, X, DATA, rounding="nearest", **asked)
    compiled = compiled_by(plain, **asked)
    compiled(X)
    found = mpq.explain(compiled).plan
    assert found.assignment == plan.assignment and found.loss == plan.loss
    assert len(set(found.assignment.values())) == 2


def test_a_context_calibrates_and_the_next_one_does_so_anew(
    plain: nn.Module, artifact: mpq.CompiledNetwork
) -> None:
    compiled = compiled_by(plain, None, assignment="w4a8")
    with pytest.raises(mpq.PlanError, match="never calibrated"):
        compiled(X)
    with mpq.calibrating(compiled):
        for batch in DATA:
            assert torch.equal(compiled(batch), plain(batch))
    assert torch.equal(compiled(X), artifact(X))
    with mpq.calibrating():
        compiled(4 * X)
    assert not torch.equal(compiled(X), artifact(X))


def test_a_context_without_calls_is_an_error(plain: nn.Module) -> None:
    block = mpq.calibrating(compiled_by(plain, None, assignment="w8a8"))
    with pytest.raises(mpq.CalibrationError, match="no compiled model was called"), block:
        plain(X)


def test_two_input_shapes_share_plan_and_codes(
    plain: nn.Module, artifact: mpq.CompiledNetwork
) -> None:
    compiled = compiled_by(plain, assignment="w4a8", max_variants=2)
    small, wide = images(3, seed=5), images(3, 12, seed=6)
    assert torch.equal(compiled(small), artifact(small))
    first = compiled(wide)
    assert torch.equal(compiled(small), artifact(small)) and torch.equal(compiled(wide), first)
    explained = mpq.explain(compiled)
    assert [part.shapes for part in explained.parts] == [[[[3, 3, 8, 8]], [[3, 3, 12, 12]]]]
    exact = plain(wide)
    assert (first - exact).norm() < 0.25 * exact.norm()
    with pytest.warns(RuntimeWarning, match="max_variants=2"):
        beyond = compiled(images(3, 16, seed=7))
    assert torch.equal(beyond, plain(images(3, 16, seed=7)))
    assert "max_variants=2" in str(mpq.explain(compiled))


def test_graph_breaks_have_one_plan() -> None:
    """Parts that share a module count its uses on, as the whole network does."""
    broken, whole = built(Broken), built(Whole)
    asked: dict[str, Any] = {"target": "bit_serial", "candidates": ["w8a8", "w4a8"]}
    compiled = compiled_by(broken, budget={"avg_bits": 6.0}, **asked)
    y = compiled(X)
    explained = mpq.explain(compiled)
    plan = mpq.plan(whole, X, DATA, rounding="nearest", tuned=False, **asked)
    assert set(explained.plan.assignment) == set(plan.assignment)
    assert explained.plan.predicted.avg_bits <= 6.0 < plan.predicted.avg_bits
    assert [part.status for part in explained.parts] == ["compiled"] * 6
    assert sum(bool(part.ends) for part in explained.parts) >= 2
    ties = explained.plan.assignment
    assert ties["blocks.0.conv:conv2d#0"] == ties["blocks.0.conv:conv2d#1"]
    for count in (1, 3):
        x = images(count, seed=9)
        exact = broken(x)
        assert (compiled(x) - exact).norm() < 0.3 * exact.norm()
    again = torch.compile(
        broken,
        backend="mpq",
        options={"plan": explained.plan, "calibration": DATA, "tuned": False, "verify": False},
    )
    assert torch.equal(again(X), y)


def test_two_models_of_one_class_stay_apart() -> None:
    first, second = built(Plain, 1), built(Plain, 2)
    pair = [compiled_by(model, assignment="w8a8") for model in (first, second)]
    for model, compiled in zip((first, second), pair, strict=True):
        expected = mpq.assign(model, X, DATA, "w8a8", rounding="nearest", tuned=False)
        assert torch.equal(compiled(X), expected(X))


def test_a_weight_with_two_names_has_that_of_the_export() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    model[2].weight = model[0].weight
    x = torch.rand(2, 8)
    compiled = compiled_by(model, [x], assignment="w8a8")
    expected = mpq.assign(model, x, [x], "w8a8", rounding="nearest", tuned=False)
    assert torch.equal(compiled(x), expected(x))
    assert mpq.explain(compiled).plan.assignment == expected.plan.assignment


def test_functions_and_models_compiled_in_place(
    plain: nn.Module, artifact: mpq.CompiledNetwork
) -> None:
    def call(x: Tensor) -> Tensor:
        return plain(x)

    assert torch.equal(compiled_by(call, assignment="w4a8")(X), artifact(X))
    asked = {**QUICK, "calibration": DATA, "assignment": "w4a8"}
    whole = torch.compile(plain, backend="mpq", fullgraph=True, options=asked)
    assert torch.equal(whole(X), artifact(X))
    model = built(Plain)
    model.compile(backend="mpq", options=asked)
    assert torch.equal(model(X), artifact(X))
    assert mpq.explain(model).plan.assignment == artifact.plan.assignment


def test_inputs_by_name_and_inference_mode() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, shift: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"shift": shift, "y": self.conv(x) * scale + shift}

    model = Two().eval()
    shift = torch.ones(1, 4, 1, 1)
    data = [{"shift": shift.expand(4, 4, 1, 1), "x": images(4)}]
    compiled = compiled_by(model, data, assignment="w8a8", allow_float=True)
    with torch.inference_mode():
        found = compiled(images(1, seed=4), shift=shift, scale=2.0)
    exact = model(images(1, seed=4), shift, 2.0)
    assert list(found) == ["shift", "y"] and torch.equal(found["shift"], shift)
    assert (found["y"] - exact["y"]).norm() < 0.05 * exact["y"].norm()


def test_training_and_gradients_are_refused(
    plain: nn.Module, artifact: mpq.CompiledNetwork
) -> None:
    """Also where Dynamo is told to swallow what backends raise."""
    with torch._dynamo.config.patch(suppress_errors=True):
        compiled = compiled_by(plain, assignment="w4a8")
        for _ in range(2):
            with pytest.raises(mpq.MpqError, match="requires gradients"):
                compiled(X.clone().requires_grad_())
            plain.train()
            with pytest.raises(mpq.MpqError, match="training mode"):
                compiled(X)
            plain.eval()
            assert torch.equal(compiled(X), artifact(X))


def test_weights_that_change_are_noticed() -> None:
    model = built(Plain)
    compiled = compiled_by(model, assignment="w8a8")
    compiled(X)
    model.load_state_dict(built(Plain, 7).state_dict())
    with pytest.raises(mpq.MpqError, match="weights have changed"):
        compiled(X)
    with mpq.calibrating(compiled):
        for batch in [X, *DATA]:
            compiled(batch)
    expected = mpq.assign(model, X, [X, *DATA], "w8a8", rounding="nearest", tuned=False)
    assert torch.equal(compiled(X), expected(X))
    model.head.weight = nn.Parameter(model.head.weight + 1)
    with pytest.raises(mpq.MpqError, match="weights have changed"):
        compiled(X)


def test_a_batch_that_the_model_does_not_run_on_is_named(plain: nn.Module) -> None:
    compiled = compiled_by(plain, [X, torch.rand(8, 1, 8, 8)], assignment="w8a8")
    with pytest.raises(mpq.CalibrationError, match="calibration batch 1: the model does not run"):
        compiled(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": {"size_mb": 1}}, "did you mean 'budget'"),
        ({"assignment": "w8a8", "budget": {"size_mb": 1}}, "exclude each other"),
        ({"plan": "no/such/plan.json"}, "cannot read the plan"),
        ({"budget": {"size_gb": 1}}, "unknown budget"),
        ({"rounding": "gptx"}, "unknown rounding"),
        ({"constraints": {"stam": "w8a8"}}, "did you mean 'stem'"),
        ({"calibration": []}, "calibration data is empty"),
        ({"calibration": [torch.full((1, 3, 8, 8), torch.nan)]}, "not finite"),
        ({"assignment": {"stem:conv2d#0": "w8a8"}}, "leaves sites out"),
    ],
)
def test_wrong_options_reach_the_user_as_they_are(
    plain: nn.Module, options: dict[str, Any], message: str
) -> None:
    given = {"tuned": False, "verify": False, "calibration": DATA, **options}
    compiled = torch.compile(plain, backend="mpq", options=given)
    with pytest.raises(mpq.MpqError, match=message):
        compiled(X)


def test_explain_needs_a_plan_and_a_compiled_model(plain: nn.Module) -> None:
    with pytest.raises(mpq.PlanError, match="no plan yet"):
        mpq.explain(compiled_by(plain, assignment="w8a8"))
    with pytest.raises(mpq.MpqError, match="not a compiled model"):
        mpq.explain(plain)
