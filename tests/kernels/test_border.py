"""Convolutions that store padding around their output, or find it around their input."""

from __future__ import annotations

from dataclasses import replace

import matmul_cases as cases
import pytest
from tiers import EVERY_TIER

from mpq_compile.kernels.workload import ConvWorkload

BASE = ConvWorkload(
    batch=1, height=9, width=7, in_channels=20, out_channels=36, kernel=(3, 3), padding=(1, 1, 1, 1)
)
SHAPES = {
    "same": {},
    "batch": {"batch": 3},
    "pointwise": {"kernel": (1, 1), "padding": (0, 0, 0, 0)},
    "pointwise_batch": {"kernel": (1, 1), "padding": (0, 0, 0, 0), "batch": 2, "width": 30},
    "stride": {"stride": (2, 2), "padding": (0, 1, 2, 3)},
    "depthwise": {"groups": 36, "in_channels": 36},
    "depthwise_stride": {"groups": 36, "in_channels": 36, "stride": (2, 1), "kernel": (5, 3)},
    "grouped": {"groups": 2},
    "narrow": {"out_channels": 5},
}
BORDERS = [(1, 1, 1, 1), (0, 2, 3, 1)]


@EVERY_TIER
@pytest.mark.parametrize("name", SHAPES)
def test_borders_and_bordered_inputs_equal_the_oracle(name, tier):
    border = BORDERS[list(SHAPES).index(name) % 2]
    workload = replace(BASE, **SHAPES[name], border=border)
    workload = replace(workload, bordered_input=any(workload.padding), residual="u8")
    cases.assert_matches(workload, tier)


@pytest.mark.parametrize("compute", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["same", "pointwise_batch", "depthwise"])
def test_borders_of_float_outputs_hold_zeros(name, compute):
    workload = replace(BASE, **SHAPES[name], compute=compute, out=compute, border=BORDERS[1])
    workload = replace(workload, bordered_input=any(workload.padding), residual=compute)
    cases.assert_matches(workload, cases.host_tiers()[0])


def test_work_alone_has_neither():
    workload = replace(BASE, bordered_input=True, border=BORDERS[0])
    assert workload.alone == BASE and workload.key != BASE.key
