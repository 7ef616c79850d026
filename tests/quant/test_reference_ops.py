"""The oracle against formulas written out in NumPy, and pooling windows against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mpq_compile.quant import ops
from mpq_compile.quant import reference as ref
from mpq_compile.quant.multipliers import (
    bounds_of,
    channel_multipliers,
    output_bounds,
    scale_of,
    zero_point_of,
)
from mpq_compile.quant.pooling import PoolWindows, pool_windows, pooled_size
from mpq_compile.types import QParams, QSpec

aten = torch.ops.aten
INF = float("inf")
F32 = np.float32


def codes(shape: tuple[int, ...], low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    dtype = torch.uint8 if low >= 0 else torch.int8
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def stored(v: np.ndarray, lo: float, hi: float, zero_point: int) -> np.ndarray:
    """Clamp float32, round half to even, add the zero point."""
    assert v.dtype == F32
    return (np.rint(np.clip(v, F32(lo), F32(hi))) + zero_point).astype(np.uint8)


@given(
    seed=st.integers(0, 2**31),
    zero_point=st.integers(0, 255),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
)
@settings(max_examples=25, deadline=None)
def test_convolution(
    seed: int, zero_point: int, stride: int, dilation: int, groups: int, pads: tuple[int, ...]
) -> None:
    x, w = codes((2, 4, 7, 6), seed=seed), codes((8, 4 // groups, 3, 2), -128, 128, seed=seed)
    geometry = ((stride, 1), pads, (1, dilation), groups, (1, 1))
    acc = ref.conv2d_accumulate(x, w, zero_point, *geometry)
    assert acc.dtype == torch.float64
    assert np.array_equal(acc.numpy(), direct_convolution(x, w, zero_point, geometry))


def direct_convolution(x: Tensor, w: Tensor, zero_point: int, geometry: tuple) -> np.ndarray:
    (sh, sw), (top, left, bottom, right), (dh, dw), groups, _ = geometry
    cells = x.numpy().astype(np.int64) - zero_point
    cells = np.pad(cells, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, c, kh, kw = w.shape
    oh = (cells.shape[2] - dh * (kh - 1) - 1) // sh + 1
    ow = (cells.shape[3] - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((len(x), n, oh, ow), np.int64)
    for channel in range(n):
        first = channel // (n // groups) * c
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
                patch = cells[:, first : first + c, rows, columns]
                taps = w.numpy().astype(np.int64)[channel, :, i, j]
                out[:, channel] += np.einsum("bchw,c->bhw", patch, taps)
    return out


@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_transposed_convolution_is_one_over_spread_input(groups: int, dilation: int) -> None:
    x, w = codes((2, 4, 5, 4)), codes((4, 3, 3, 2), -128, 128)
    blocks = w.reshape(groups, 4 // groups, 3, 3, 2).transpose(1, 2)
    turned = blocks.reshape(3 * groups, 4 // groups, 3, 2).flip(2, 3)
    pads = (2 * dilation - 1, dilation, 2 * dilation - 1 + 1, dilation)
    geometry = ((1, 1), pads, (dilation, dilation), groups, (2, 3))
    found = ref.conv2d_accumulate(x, turned, 7, *geometry)
    centered = x.double() - 7
    expected = F.conv_transpose2d(
        centered,
        w.double(),
        stride=(2, 3),
        padding=(1, 0),
        output_padding=(1, 0),
        groups=groups,
        dilation=dilation,
    )
    assert torch.equal(found, expected)


@given(seed=st.integers(0, 2**31), zero_points=st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=40, deadline=None)
def test_linear_with_its_epilogue(seed: int, zero_points: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(seed)
    x, w = codes((3, 20), seed=seed), codes((5, 20), -127, 128, seed=seed)
    r = codes((3, 5), seed=seed + 1)
    scale = generator.uniform(1e-4, 1e-2, 5).astype(F32)
    bias = generator.normal(size=5).astype(F32) * 20
    factor = float(F32(generator.uniform(0.1, 2)))
    bounds = output_bounds(0.0, 6.0, 0.05, zero_points[2], 255)
    tensors = [torch.from_numpy(v) for v in (scale, bias)]
    found = ops.QLINEAR(x, w, *tensors, r, list(zero_points), factor, list(bounds), "u8")
    acc = (x.numpy().astype(np.int64) - zero_points[0]) @ w.numpy().astype(np.int64).T
    v = acc.astype(F32) * scale + bias
    v = v + (r.numpy().astype(np.int32) - zero_points[1]).astype(F32) * F32(factor)
    assert np.array_equal(found.numpy(), stored(v, *bounds, zero_points[2]))


def test_an_accumulator_is_exact_where_float32_is_not() -> None:
    x = torch.full((1, 70000), 255, dtype=torch.uint8)
    w = torch.full((1, 70000), 127, dtype=torch.int8)
    w[0, 0] = 126
    assert ref.linear_accumulate(x, w, 0).item() == 255 * 127 * 70000 - 255


def test_grouped_linear_adds_groups_in_order() -> None:
    x, w = codes((4, 64)), codes((6, 64), -8, 8)
    scale = torch.rand(6, 2) / 100
    bias = torch.randn(6)
    v = bias.numpy()[None].repeat(4, 0)
    for g in range(2):
        span = slice(32 * g, 32 * g + 32)
        acc = (x.numpy()[:, span].astype(np.int64) - 3) @ w.numpy()[:, span].astype(np.int64).T
        v = v + acc.astype(F32) * scale.numpy()[:, g]
    assert np.array_equal(ref.grouped_linear(x, w, scale, bias, 3).numpy(), v)


@given(seed=st.integers(0, 2**31), zero_points=st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=40, deadline=None)
def test_add_and_multiply(seed: int, zero_points: tuple[int, int, int]) -> None:
    a, b = codes((60,), seed=seed), codes((60,), seed=seed + 1)
    first, second, _ = (
        (v.numpy().astype(np.int32) - z).astype(F32)
        for v, z in zip((a, b, b), zero_points, strict=True)
    )
    bounds = (-zero_points[2], 255 - zero_points[2])
    scales = (float(F32(0.37)), float(F32(1.21)))
    found = ops.QADD(a, b, list(zero_points), list(scales), list(bounds), "u8")
    v = first * F32(scales[0]) + second * F32(scales[1])
    assert np.array_equal(found.numpy(), stored(v, *bounds, zero_points[2]))
    found = ops.QMUL(a, b, list(zero_points), 0.0123, list(bounds), "u8")
    v = (first * second) * F32(0.0123)
    assert np.array_equal(found.numpy(), stored(v, *bounds, zero_points[2]))


@pytest.mark.parametrize("out", ["u8", "bf16", "fp32"])
def test_convert(out: str) -> None:
    x = torch.linspace(-3, 3, 301)
    found = ops.CONVERT(x, 0, 50.0, [-100.0, 155.0], 100, out)
    v = np.clip(x.numpy() * F32(50), F32(-100), F32(155))
    if out == "u8":
        assert np.array_equal(found.numpy(), stored(v, -100, 155, 100))
    else:
        kind = torch.float32 if out == "fp32" else torch.bfloat16
        assert torch.equal(found, torch.from_numpy(v).to(kind))


def test_halves_round_to_even() -> None:
    v = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert ref.requantize(v, -10, 10, 10, "u8").tolist() == [10, 12, 12, 10, 8]


def test_table() -> None:
    table = torch.arange(255, -1, -1).to(torch.uint8)
    x = codes((2, 3, 4))
    assert torch.equal(ops.LUT(x, table), 255 - x)
    assert torch.equal(ref.lut(x, table), 255 - x)


def pool_node(target: object, *args: object, **kwargs: object) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"), *args), kwargs)  # type: ignore[arg-type]


def pooled(x: Tensor, windows: PoolWindows) -> Tensor:
    spans = [windows.rows, windows.columns]
    return ref.pool_sum(x, spans, 0) / torch.from_numpy(windows.divisors)


AVERAGES = [
    ([3, 3],),
    ([3, 2], [2, 1], [1, 0]),
    ([3, 3], [2, 2], [1, 1], True),
    ([3, 3], [2, 2], [1, 1], True, False),
    ([2, 3], [3, 2], [0, 1], False, False),
    ([2, 2], [3, 3], [1, 1], True, True),
    ([3, 3], [2, 2], [1, 1], True, True, 5),
    ([2, 2], [], [0, 0], False, True, 3),
]


@pytest.mark.parametrize("size", [(7, 8), (5, 5), (6, 9)])
@pytest.mark.parametrize("args", AVERAGES)
def test_average_windows(args: tuple, size: tuple[int, int]) -> None:
    x = codes((2, 3, *size))
    windows = pool_windows(pool_node(aten.avg_pool2d.default, *args), (2, 3, *size))
    expected = aten.avg_pool2d.default(x.double(), *args)
    torch.testing.assert_close(pooled(x, windows), expected, rtol=1e-12, atol=1e-12)


def test_average_windows_by_name() -> None:
    node = pool_node(aten.avg_pool2d.default, [3], stride=[2], count_include_pad=False, padding=[1])
    x = codes((1, 2, 8, 7))
    expected = F.avg_pool2d(x.double(), 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(pooled(x, pool_windows(node, (1, 2, 8, 7))), expected)


@pytest.mark.parametrize("out", [[1, 1], [3, 4], [7, 2], [None, 3], [5]])
def test_adaptive_windows(out: list) -> None:
    x = codes((2, 3, 7, 9))
    windows = pool_windows(pool_node(aten.adaptive_avg_pool2d.default, out), (2, 3, 7, 9))
    expected = F.adaptive_avg_pool2d(x.double(), out if len(out) > 1 else out[0])
    torch.testing.assert_close(pooled(x, windows), expected, rtol=1e-12, atol=1e-12)


def test_mean_is_one_window() -> None:
    x = codes((2, 3, 7, 9))
    windows = pool_windows(pool_node(aten.mean.dim, [2, 3], True), (2, 3, 7, 9))
    torch.testing.assert_close(pooled(x, windows), x.double().mean((2, 3), keepdim=True))


@given(
    size=st.integers(3, 12),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    padded=st.booleans(),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
)
def test_pooled_size_is_pytorchs(
    size: int, kernel: int, stride: int, padded: bool, dilation: int, ceil_mode: bool
) -> None:
    padding = kernel // 2 if padded else 0
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        return
    x = torch.randn(1, 1, size, size)
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    out = pooled_size(size, kernel, stride, padding, dilation, ceil_mode)
    assert expected.shape[2] == out
    windows = ref.windows_1d(size, kernel, stride, padding, dilation, out)
    assert torch.equal(ref.max_pool(x, [windows, windows], (dilation, dilation)), expected)


def test_average_pool_operator() -> None:
    x = codes((1, 2, 4, 4))
    windows = pool_windows(pool_node(aten.avg_pool2d.default, [2, 2]), (1, 2, 4, 4))
    scale = torch.full((2, 2), 0.25 * 1.5)
    args = (windows.flat_rows, windows.flat_columns, scale, [3, 9], [-9.0, 246.0], "u8")
    sums = F.avg_pool2d(x.double() - 3, 2, divisor_override=1).numpy()
    assert np.array_equal(
        ops.AVG_POOL2D(x, *args).numpy(), stored(sums.astype(F32) * F32(0.375), -9, 246, 9)
    )


def test_multipliers_are_rounded_once() -> None:
    scale, bias = channel_multipliers(
        np.array([0.1, 0.3], F32), np.array([1.0, -2.0], F32), 0.013, 0.07
    )
    weight = np.array([0.1, 0.3], F32).astype(np.float64)
    assert np.array_equal(scale, (weight * 0.013 / 0.07).astype(F32))
    assert np.array_equal(bias, (np.array([1.0, -2.0]) / 0.07).astype(F32))


def test_bounds_stay_within_the_codes() -> None:
    qparams = QParams(spec=QSpec(bits=8, signed=False, symmetric=False), scale=0.1, zero_point=20)
    assert bounds_of(qparams) == (-20, 235)
    assert bounds_of(qparams, 0.0, 6.0) == (0.0, float(F32(60.0)))
    assert bounds_of(None, 0.0) == (0.0, INF)
    assert (scale_of(None), zero_point_of(None)) == (1.0, 0)
    assert (scale_of(qparams), zero_point_of(qparams)) == (0.1, 20)


def test_padding_crops_where_it_is_negative() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert ref.stuff_and_pad(x, (-1, 1, 0, -2), (1, 1), 9.0).tolist() == [
        [[[9.0, 4.0, 5.0], [9.0, 8.0, 9.0], [9.0, 12.0, 13.0]]]
    ]
    spread = ref.stuff_and_pad(x[:, :, :2, :2], (0, 0, 0, 0), (2, 3), -1.0)
    assert spread.tolist() == [[[[0, -1, -1, 1], [-1, -1, -1, -1], [4, -1, -1, 5]]]]
