"""ResNet-20 through ``torch.compile``: the network of ``mpq.compile``, bit for bit."""

from __future__ import annotations

import pytest
import shared_nets
import torch
from compiled_nets import nothing_compiled  # noqa: F401 - for every test

import mpq_compile as mpq

pytestmark = pytest.mark.skipif(
    not shared_nets.data_folder().is_dir(),
    reason=f"no networks in {shared_nets.data_folder()} (set MPQ_DATA)",
)


def test_it_equals_mpq_compile_on_the_same_plan() -> None:
    net = shared_nets.load_net("resnet20", 64, calibration=32)
    model, data = net.model.eval(), [net.calibration]
    asked = {"rounding": "nearest", "tuned": False}
    plan = mpq.plan(
        model,
        net.example,
        data,
        target="bit_serial",
        budget={"avg_bits": 5.0},
        candidates=["w8a8", "w4a8"],
        **asked,
    )
    assert len(set(plan.assignment.values())) == 2
    own = mpq.compile(model, net.example, data, plan=plan, verify=False, tuned=False)
    compiled = torch.compile(
        model,
        backend="mpq",
        options={"plan": plan, "calibration": data, "verify": False, "tuned": False},
    )
    with torch.inference_mode():
        assert torch.equal(compiled(net.example), own(net.example))
        assert torch.equal(compiled(net.images), own(net.images))
    assert mpq.explain(compiled).plan.assignment == plan.assignment
