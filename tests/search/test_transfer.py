"""From small data to a network that runs: search, carry over, round, build."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from search_nets import Small
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.errors import PlanError
from mpq_compile.recipe import Recipe

NAMES = ["w2a8", "w4a8", "w8a8"]
MACS = 36 * 27 * 8 + 36 * 72 * 8 + 9 * 9 * 8 + 64 + 32


def model(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Small(classes).eval()


def labelled(samples: int = 96) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model()(x).argmax(1)


def policy_of(**more: Any) -> mpq.Policy:
    x, y = labelled()
    options: dict[str, Any] = {"budget": mpq.Budget(bops=MACS * 40), "epochs": 2, **more}
    data = options.pop("data", [(x, y)])
    return mpq.search_policy(model(), x[:1], data, target="bit_serial", candidates=NAMES, **options)


def test_a_policy_is_built_with_the_weights_of_another_network() -> None:
    policy = policy_of()
    assert policy.bops <= MACS * 40
    x = torch.randn(64, 3, 6, 6)
    net = mpq.assign(model(classes=7), x[:1], [x], policy, target="bit_serial")
    assert dict(net.plan.assignment) == dict(policy.assignment)
    assert net.plan.provenance["rounding"] == Recipe().rounding
    assert torch.equal(net(x[:2]), net.reference(x[:2]))


def test_a_plan_takes_the_policy_and_checks_the_budget() -> None:
    policy, x = policy_of(), torch.randn(32, 3, 6, 6)
    how: dict[str, Any] = {"target": "bit_serial", "policy": policy}
    plan = mpq.plan(model(seed=9), x[:1], [x], budget={"bops": MACS * 40}, **how)
    assert dict(plan.assignment) == dict(policy.assignment)
    assert plan.predicted.bops == policy.bops
    assert policy.note in plan.notes
    with pytest.raises(mpq.InfeasibleBudgetError):
        mpq.plan(model(seed=9), x[:1], [x], budget={"bops": policy.bops * 0.9}, **how)


def test_constraints_pin_sites() -> None:
    policy = policy_of(constraints={"head": "w8a8", "stem": ["w8a8", "w4a8"]})
    chosen = {site.partition(":")[0]: name for site, name in policy.assignment.items()}
    assert chosen["head"] == "w8a8"
    assert chosen["stem"] != "w2a8"


def test_data_that_can_be_read_once_are_read_once() -> None:
    x, y = labelled()
    pieces = ((x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64))
    assert policy_of(data=pieces).assignment == policy_of().assignment


def test_labels_are_needed_unless_the_float_network_teaches() -> None:
    x, _ = labelled()
    with pytest.raises(mpq.CalibrationError, match="needs labels"):
        policy_of(data=[x])
    assert policy_of(data=[x], loss="distillation").assignment


def test_a_search_keeps_bops_and_nothing_else() -> None:
    with pytest.raises(PlanError, match="BOPs and no other") as error:
        policy_of(budget=mpq.Budget(bops=1e6, size_mb=1.0))
    assert error.value.found == "size_mb"
