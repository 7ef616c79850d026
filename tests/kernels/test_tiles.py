"""AMX tile kernels: emulated everywhere, the instructions themselves where the CPU has them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import matmul_cases as cases
import numpy as np
import pytest
import tvm

from mpq_compile.kernels import arguments, tiles
from mpq_compile.kernels.geometry import uses_tiles
from mpq_compile.kernels.tier import TIERS, host_tiers
from mpq_compile.kernels.tile_instructions import EmulatedTiles
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload

AMX = TIERS["amx"]
emulated = partial(tiles.generate, unit=EmulatedTiles)


def conv(**shape: object) -> ConvWorkload:
    """Return a 3×3 convolution unless ``shape`` says otherwise."""
    common = {"batch": 1, "kernel": (3, 3), "padding": (1, 1, 1, 1)}
    return ConvWorkload(**{**common, **shape})


WORKLOADS: dict[str, Workload] = {
    "small_image": conv(height=7, width=7, in_channels=64, out_channels=64),
    "narrow_runs": conv(height=9, width=18, in_channels=16, out_channels=16),
    "odd_everything": conv(height=5, width=21, in_channels=13, out_channels=43),
    "strided": conv(height=12, width=28, in_channels=32, out_channels=48, stride=(2, 2)),
    "strided_tall": conv(height=13, width=9, in_channels=32, out_channels=32, stride=(2, 1)),
    "batch": conv(batch=3, height=4, width=4, in_channels=24, out_channels=32),
    "dilated": conv(
        height=9, width=20, in_channels=40, out_channels=20, dilation=(2, 2), padding=(2, 2, 2, 2)
    ),
    "grouped": conv(height=6, width=9, in_channels=96, out_channels=40, groups=2),
    "transposed": conv(height=5, width=6, in_channels=32, out_channels=16, input_dilation=(2, 2)),
    "pointwise": conv(
        height=6, width=7, in_channels=128, out_channels=80, kernel=(1, 1), padding=(0, 0, 0, 0)
    ),
    "unpadded": conv(height=8, width=8, in_channels=64, out_channels=32, padding=(0, 0, 0, 0)),
    "linear": LinearWorkload(rows=37, in_features=100, out_features=70),
    "linear_rows": LinearWorkload(rows=37, in_features=100, out_features=70, row_scales=True),
    "linear_whole": LinearWorkload(rows=64, in_features=128, out_features=64, residual="u8"),
}


def _computed(workload: Workload, compute: str) -> Workload:
    """Return the workload in a compute format; only integer rows have scales of their own."""
    if compute == "bf16" and isinstance(workload, LinearWorkload):
        workload = replace(workload, row_scales=False)
    return replace(workload, compute=compute)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("compute", ["int8", "bf16"])
def test_emulated_tiles_equal_the_oracle(name, compute):
    workload = replace(_computed(WORKLOADS[name], compute), out="fp32")
    assert uses_tiles(workload, AMX)
    cases.assert_matches(workload, AMX, generate=emulated, target=cases.PLAIN_TARGET)


@pytest.fixture
def plain_rounding(monkeypatch):
    """Round to bf16 by integers: the plain target lacks the instruction."""
    monkeypatch.setattr(arguments, "BF16_OF_F32", "")


@pytest.mark.usefixtures("plain_rounding")
@pytest.mark.parametrize("residual", ["u8", "fp32"])
@pytest.mark.parametrize("out", ["u8", "bf16"])
def test_emulated_tiles_with_residual(out, residual):
    workload = conv(height=7, width=7, in_channels=32, out_channels=40, out=out, residual=residual)
    cases.assert_matches(workload, AMX, generate=emulated, target=cases.PLAIN_TARGET)


@pytest.mark.parametrize("batch", [1, 3])
def test_emulated_tiles_with_a_border(batch):
    shape = conv(batch=batch, height=9, width=7, in_channels=20, out_channels=36, residual="u8")
    workload = replace(shape, border=(0, 2, 3, 1), bordered_input=True)
    cases.assert_matches(workload, AMX, generate=emulated, target=cases.PLAIN_TARGET)


@pytest.mark.parametrize("compute,product", [("int8", "tdpbusd"), ("bf16", "tdpbf16ps")])
@pytest.mark.parametrize("name", ["small_image", "strided", "linear"])
def test_instructions_are_in_the_assembly(name, compute, product):
    workload = replace(WORKLOADS[name], compute=compute)
    target = tvm.target.Target(AMX.target(2))
    program = tvm.compile(tiles.generate(workload, AMX, 2), target=target)
    assembly = program.mod.inspect_source("asm")
    for instruction in ("ldtilecfg", "tileloadd", product, "tilestored", "tilerelease"):
        assert instruction in assembly


@pytest.mark.skipif(AMX not in host_tiers(), reason="this CPU has no AMX")
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("compute", ["int8", "bf16"])
def test_instructions_equal_the_oracle(name, compute):
    permission = tvm.compile(tiles.amx_permission(), target=tvm.target.Target(AMX.target(2)))
    status = tvm.runtime.tensor(np.ones(1, np.int64))
    permission["main"](status)
    assert status.numpy()[0] == 0
    cases.assert_matches(_computed(WORKLOADS[name], compute), AMX)


def test_few_pixels_or_channels_do_not_use_tiles():
    assert not uses_tiles(LinearWorkload(rows=8, in_features=64, out_features=64), AMX)
    assert not uses_tiles(conv(height=8, width=8, in_channels=1, out_channels=16), AMX)
    assert not uses_tiles(conv(height=8, width=8, in_channels=64, out_channels=8), AMX)
