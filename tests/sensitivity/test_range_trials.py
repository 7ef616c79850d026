"""The outputs choose among observers, at each width of activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import spread
from mpq_compile.quant.observers import PROPOSED
from mpq_compile.recipe import Recipe
from mpq_compile.sensitivity.range_trials import SAMPLES, output_noise
from mpq_compile.session import Session


class Summed(nn.Module):
    """Adds up what is behind a ReLU: rounding cancels, what is cut off does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 256), nn.Linear(256, 3)
        nn.init.constant_(self.b.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def session(observer: str = "auto", candidate: str = "w8a4") -> Session:
    torch.manual_seed(0)
    x = torch.randn(96, 16)
    recipe = Recipe(observer=observer, rounding="nearest")
    model = Summed().eval()
    return Session(model, x[:1], [x], "bit_serial", candidates=[candidate], recipe=recipe)


def measured(found: Session, observer: str, bits: int) -> float:
    """The noise of the integer oracle, weights of 8 bits included."""
    own = session(observer, f"w8a{bits}")
    assignment = {site.id: f"w8a{bits}" for site in own.network.sites}
    x = torch.cat([batch.inputs[0] for batch in own.batches])
    with torch.no_grad():
        exact, value = own.float_graph()(x), own.reference(assignment)(x)
    return float((value - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_outputs_choose_what_the_oracle_confirms(bits: int) -> None:
    found = session(candidate=f"w8a{bits}")
    found.calibration_for(found.choices)
    chosen = found.ranges.chosen[bits]
    assert set(found.ranges.chosen) == {bits}
    seen = spread(found.batches, SAMPLES)
    errors = output_noise(found.network, found.ranges, seen, bits)
    assert set(errors) == set(PROPOSED)
    assert errors[chosen] <= 1.06 * min(errors.values())
    assert measured(found, "auto", bits) == measured(found, chosen, bits)
    if bits == 4:
        assert chosen != "mse", "what is cut off adds up here"
        assert measured(found, chosen, bits) < 0.8 * measured(found, "mse", bits)


def test_named_observers_are_not_replaced_and_plans_say_what_was_chosen() -> None:
    fixed = session("minmax")
    fixed.calibration_for(fixed.choices)
    assert not fixed.ranges.chosen
    plan = session().solve(mpq.Budget())
    assert plan.provenance["observer"] == "auto"
    assert any("least noise at the outputs" in note and "at 4 bits" in note for note in plan.notes)


def test_an_assignment_of_other_widths_is_chosen_for_too() -> None:
    found = session(candidate="w8a8")
    found.rounded_for({site.id: "w4a4" for site in found.network.sites})
    assert set(found.ranges.chosen) == {4}


def test_float_and_dynamic_candidates_run_nothing() -> None:
    found = session(candidate="w8a8")
    sites = [site.id for site in found.network.sites]
    found.calibration_for(dict.fromkeys(sites, ["fp32", "w8a8d", "w4a16"]))
    assert not found.ranges.chosen


def test_an_unknown_observer_is_named_before_anything_runs() -> None:
    with pytest.raises(mpq.CalibrationError, match="mse44") as caught:
        Recipe(observer="mse44")
    assert "mse4" in str(caught.value.remedy) and "auto" in str(caught.value.expected)
