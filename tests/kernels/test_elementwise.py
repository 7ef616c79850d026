"""Elementwise kernels against the PyTorch oracle, bit for bit, on every tier of this machine."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from programs import THREADS, call
from tiers import DISTINCT_TIERS
from torch import Tensor

from mpq_compile.kernels.elementwise import generate
from mpq_compile.kernels.elementwise_workload import (
    AddWorkload,
    ConcatWorkload,
    ConvertWorkload,
    LutWorkload,
    MulWorkload,
    TransposeConvertWorkload,
)
from mpq_compile.kernels.packing import pack_add, pack_convert, pack_multiply
from mpq_compile.kernels.tier import host_flags, host_tiers, tier_named
from mpq_compile.quant import reference

FORMATS = ("u8", "bf16", "fp32")
PAIRS = list(itertools.product(FORMATS, FORMATS))
U8_BOUNDS = (-7.0, 240.0)


def random_values(fmt: str, shape: tuple[int, ...], spread: float = 1.0) -> Tensor:
    """Return random stored values of a format."""
    if fmt == "u8":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    values = torch.randn(shape) * spread
    return values.to(torch.bfloat16) if fmt == "bf16" else values


def as_numpy(x: Tensor) -> np.ndarray:
    """Return the flat stored form: bf16 as its uint16 bits."""
    flat = x.contiguous().reshape(-1)
    return flat.view(torch.uint16).numpy() if flat.dtype == torch.bfloat16 else flat.numpy()


def run(workload, tier, arguments: list, expected: Tensor) -> None:
    """Build and run a workload; compare with the oracle bit for bit."""
    function = generate(workload, tier, THREADS)
    wanted = as_numpy(expected)
    result = call(function, tier, arguments, np.zeros_like(wanted))
    np.testing.assert_array_equal(result, wanted)


def bounds_of(out: str) -> tuple[float, float]:
    """Return a range that saturates some results but leaves most."""
    return U8_BOUNDS if out == "u8" else (-2.5, 3.0e4)


@DISTINCT_TIERS
@pytest.mark.parametrize("source,target", PAIRS)
def test_convert(tier, source, target, size=1003):
    scale = {"u8": 0.37, "bf16": 61.7, "fp32": 61.7}[source]
    x = random_values(source, (size,))
    expected = reference.convert(x, 11, scale, bounds_of(target), 7, target)
    record = pack_convert(11, scale, bounds_of(target), 7)
    workload = ConvertWorkload(size=size, source=source, target=target)
    run(workload, tier, [as_numpy(x), record], expected)


@DISTINCT_TIERS
def test_convert_in_parallel(tier):
    x = random_values("fp32", (70_001,))
    expected = reference.convert(x, 0, 43.9, (-128.0, 127.0), 128, "u8")
    workload = ConvertWorkload(size=70_001, source="fp32", target="u8")
    run(workload, tier, [as_numpy(x), pack_convert(0, 43.9, (-128.0, 127.0), 128)], expected)


@DISTINCT_TIERS
@pytest.mark.parametrize(
    "channels,pixels", [(3, 1031), (1, 50), (3, 16), (64, 49), (21, 37), (6, 6), (300, 2)]
)
@pytest.mark.parametrize(
    "direction,source,target", [("to_nhwc", "fp32", "u8"), ("to_nchw", "u8", "fp32")]
)
def test_transpose_convert(tier, channels, pixels, direction, source, target):
    batch = 2
    scale = 0.21 if source == "u8" else 55.0
    x = random_values(source, (batch, channels, pixels))
    if direction == "to_nchw":
        x = x.transpose(1, 2).contiguous()
    converted = reference.convert(x, 3, scale, bounds_of(target), 7, target)
    workload = TransposeConvertWorkload(
        batch=batch,
        channels=channels,
        pixels=pixels,
        source=source,
        target=target,
        direction=direction,
    )
    record = pack_convert(3, scale, bounds_of(target), 7)
    run(workload, tier, [as_numpy(x), record], converted.transpose(1, 2))


@DISTINCT_TIERS
def test_transpose_convert_in_parallel(tier):
    x = random_values("fp32", (1, 40, 1000))
    expected = reference.convert(x, 0, 43.9, U8_BOUNDS, 7, "u8").transpose(1, 2)
    workload = TransposeConvertWorkload(
        batch=1, channels=40, pixels=1000, source="fp32", target="u8", direction="to_nhwc"
    )
    run(workload, tier, [as_numpy(x), pack_convert(0, 43.9, U8_BOUNDS, 7)], expected)


@DISTINCT_TIERS
@pytest.mark.parametrize(
    "a,b,out",
    [("u8", "u8", "u8"), ("u8", "fp32", "u8"), ("bf16", "u8", "bf16"), ("fp32", "fp32", "fp32")],
)
@pytest.mark.parametrize("size", [5, 40_007])
def test_add(tier, a, b, out, size):
    x, y = random_values(a, (size,)), random_values(b, (size,), 40.0)
    scales, zero_points = (0.731, 0.417), (9, 201, 7)
    expected = reference.add(x, y, zero_points, scales, bounds_of(out), out)
    record = pack_add(zero_points, scales, bounds_of(out))
    workload = AddWorkload(size=size, a=a, b=b, out=out)
    run(workload, tier, [as_numpy(x), as_numpy(y), record], expected)


@DISTINCT_TIERS
@pytest.mark.parametrize("broadcast", ["none", "pixel"])
@pytest.mark.parametrize(
    "a,b,out,pixels,channels",
    [
        ("u8", "u8", "u8", 401, 96),
        ("u8", "fp32", "u8", 7, 19),
        ("bf16", "bf16", "bf16", 7, 19),
    ],
)
def test_multiply(tier, broadcast, a, b, out, pixels, channels):
    batch = 2
    x = random_values(a, (batch, pixels, channels))
    y = random_values(b, (batch, 1 if broadcast == "pixel" else pixels, channels))
    scale, zero_points = 0.0137 if b == "u8" else 0.9, (9, 101, 7)
    expected = reference.multiply(x, y, zero_points, scale, bounds_of(out), out)
    record = pack_multiply(zero_points, scale, bounds_of(out))
    workload = MulWorkload(
        batch=batch, pixels=pixels, channels=channels, a=a, b=b, out=out, broadcast=broadcast
    )
    run(workload, tier, [as_numpy(x), as_numpy(y), record], expected)


@DISTINCT_TIERS
@pytest.mark.parametrize("size", [3, 1003, 50_021])
def test_lut(tier, size):
    x, table = random_values("u8", (size,)), random_values("u8", (256,))
    arguments = [as_numpy(x), as_numpy(table)]
    run(LutWorkload(size=size), tier, arguments, reference.lut(x, table))


def test_lut_reads_every_entry():
    x = torch.arange(256).to(torch.uint8)
    table = random_values("u8", (256,))
    for tier in host_tiers():
        run(LutWorkload(size=256), tier, [as_numpy(x), as_numpy(table)], table)


@DISTINCT_TIERS
@pytest.mark.parametrize(
    "fmt,pixels,channels",
    [
        ("u8", 9, (3, 64, 17)),
        ("u8", 500, (24, 100)),
        ("u8", 4, (1,)),
        ("bf16", 9, (3, 64, 17)),
        ("fp32", 500, (24, 100)),
    ],
)
def test_concat(tier, fmt, pixels, channels):
    parts = [random_values(fmt, (pixels, count)) for count in channels]
    workload = ConcatWorkload(pixels=pixels, channels=channels, dtype=fmt)
    run(workload, tier, [as_numpy(part) for part in parts], torch.cat(parts, 1))


def test_keys_are_distinct():
    workloads: list[Any] = [
        ConvertWorkload(size=8, source=a, target=b)  # type: ignore[arg-type]
        for a, b in PAIRS
    ] + [AddWorkload(size=8, a="u8", b="u8", out="u8"), LutWorkload(size=8)]
    assert len({workload.key for workload in workloads}) == len(workloads)


@pytest.mark.skipif("avx512vbmi" not in host_flags(), reason="needs AVX-512 VBMI")
def test_lut_of_the_amx_tier():
    # The look-up itself uses byte permutes only, which processors without AMX have too.
    tier = replace(tier_named("vnni"), dot="amx", mattr=("+avx512vbmi",))
    x, table = random_values("u8", (50_021,)), random_values("u8", (256,))
    run(LutWorkload(size=50_021), tier, [as_numpy(x), as_numpy(table)], reference.lut(x, table))
