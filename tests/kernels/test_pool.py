"""Pooling kernels against the PyTorch oracle and against torch's own pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import THREADS, call
from tiers import DISTINCT_TIERS

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.elementwise_workload import PoolWorkload
from mpq_compile.kernels.packing import pack_pool, pack_window_scales, pack_windows
from mpq_compile.kernels.pool import generate
from mpq_compile.kernels.tier import host_tiers
from mpq_compile.quant import reference

BOUNDS = (-9.0, 246.0)


def spans(kind: str) -> tuple[tuple[int, int, int], list, list]:
    """Return (height, width, channels), row spans and column spans of a named case."""
    windows = reference.windows_1d
    cases = {
        "3x3s2p1": ((13, 11, 37), windows(13, 3, 2, 1, 1, 7), windows(11, 3, 2, 1, 1, 6)),
        "2x2s2": ((8, 8, 64), windows(8, 2, 2, 0, 1, 4), windows(8, 2, 2, 0, 1, 4)),
        "global": ((7, 7, 333), [(0, 7)], [(0, 7)]),
        "adaptive": (
            (9, 7, 20),
            reference.adaptive_windows_1d(9, 4),
            reference.adaptive_windows_1d(7, 3),
        ),
        "mean_h": ((6, 5, 16), [(0, 6)], [(i, i + 1) for i in range(5)]),
        "large": ((40, 40, 72), windows(40, 3, 1, 1, 1, 40), windows(40, 3, 1, 1, 1, 40)),
        "large_global": ((14, 14, 1280), [(0, 14)], [(0, 14)]),
    }
    return cases[kind]


NAMES = ("3x3s2p1", "2x2s2", "global", "adaptive", "mean_h", "large", "large_global")
AVERAGES = [(name, 1, "u8") for name in NAMES] + [("adaptive", 2, "fp32"), ("global", 3, "u8")]
MAXIMA = [(name, "u8") for name in NAMES] + [("3x3s2p1", "bf16"), ("3x3s2p1", "fp32")]


def stored(x: torch.Tensor) -> np.ndarray:
    """Return the flat NHWC form of an NCHW tensor; bf16 as its uint16 bits."""
    flat = x.permute(0, 2, 3, 1).contiguous().reshape(-1)
    return flat.view(torch.uint16).numpy() if flat.dtype == torch.bfloat16 else flat.numpy()


def run(workload, tier, arguments, like: torch.Tensor) -> np.ndarray:
    """Build and run a workload; return the stored result."""
    function = generate(workload, tier, THREADS)
    return call(function, tier, arguments, np.zeros_like(stored(like)))


def workload_of(kind: Any, shape, rows, columns, source, out, batch=2, step=(1, 1)):
    """Return the workload of a case."""
    return PoolWorkload(
        kind=kind,
        batch=batch,
        height=shape[0],
        width=shape[1],
        channels=shape[2],
        out_height=len(rows),
        out_width=len(columns),
        step=step,
        source=source,
        out=out,
    )


@DISTINCT_TIERS
@pytest.mark.parametrize("case,batch,out", AVERAGES)
def test_avg_u8(tier, case, batch, out):
    shape, rows, columns = spans(case)
    x = torch.randint(0, 256, (batch, shape[2], *shape[:2]), dtype=torch.uint8)
    scales = pack_window_scales(rows, columns, 0.93)
    table = torch.from_numpy(scales).reshape(len(rows), len(columns))
    expected = reference.avg_pool(x, (rows, columns), table, 77, BOUNDS, 9, out)
    workload = workload_of("avg", shape, rows, columns, "u8", out, batch)
    arguments = [stored(x), pack_windows(rows, columns), scales, pack_pool(77, BOUNDS, 9)]
    np.testing.assert_array_equal(run(workload, tier, arguments, expected), stored(expected))


@DISTINCT_TIERS
@pytest.mark.parametrize("source", ["fp32", "bf16"])
def test_avg_float(tier, source):
    shape, rows, columns = spans("3x3s2p1")
    x = torch.randn(2, shape[2], *shape[:2])
    x = x.to(torch.bfloat16) if source == "bf16" else x
    scales = pack_window_scales(rows, columns, 1.0, divisor=9)
    expected = F.avg_pool2d(x.float(), 3, 2, 1)
    workload = workload_of("avg", shape, rows, columns, source, "fp32")
    wide = (-np.inf, np.inf)
    arguments = [stored(x), pack_windows(rows, columns), scales, pack_pool(0, wide, 0)]
    result = run(workload, tier, arguments, expected)
    np.testing.assert_allclose(result, stored(expected), rtol=1e-5, atol=1e-6)


@DISTINCT_TIERS
@pytest.mark.parametrize("case,source", MAXIMA)
def test_max(tier, case, source):
    shape, rows, columns = spans(case)
    x = torch.randn(2, shape[2], *shape[:2]) * 9 - 30
    x = {"u8": (x + 100).to(torch.uint8), "bf16": x.to(torch.bfloat16), "fp32": x}[source]
    expected = reference.max_pool(x, (rows, columns), (1, 1))
    workload = workload_of("max", shape, rows, columns, source, source)
    result = run(workload, tier, [stored(x), pack_windows(rows, columns)], expected)
    np.testing.assert_array_equal(result, stored(expected))


@DISTINCT_TIERS
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_max_with_dilation_equals_torch(tier, dilation):
    x = torch.randint(0, 256, (1, 21, 17, 19), dtype=torch.uint8)
    expected = F.max_pool2d(x.float(), 3, 2, 1, dilation).to(torch.uint8)
    rows, columns = (
        reference.windows_1d(size, 3, 2, 1, step, out)
        for size, step, out in zip((17, 19), dilation, expected.shape[2:], strict=True)
    )
    workload = workload_of("max", (17, 19, 21), rows, columns, "u8", "u8", 1, dilation)
    result = run(workload, tier, [stored(x), pack_windows(rows, columns)], expected)
    np.testing.assert_array_equal(result, stored(expected))


def test_oracle_equals_torch():
    x = torch.randint(0, 256, (1, 5, 9, 7), dtype=torch.uint8)
    rows, columns = reference.adaptive_windows_1d(9, 4), reference.adaptive_windows_1d(7, 3)
    scales = torch.from_numpy(pack_window_scales(rows, columns, 1.0)).reshape(4, 3)
    mean = reference.avg_pool(x, (rows, columns), scales, 0, (-1e9, 1e9), 0, "fp32")
    torch.testing.assert_close(mean, F.adaptive_avg_pool2d(x.float(), (4, 3)))


def test_wrong_workloads_are_refused():
    tier = host_tiers()[-1]
    with pytest.raises(LoweringError, match="keeps the format"):
        generate(workload_of("max", (4, 4, 4), [(0, 4)], [(0, 4)], "u8", "fp32"), tier, 1)
    with pytest.raises(LoweringError, match="no dilation"):
        generate(
            workload_of("avg", (4, 4, 4), [(0, 4)], [(0, 4)], "u8", "u8", step=(2, 1)), tier, 1
        )
