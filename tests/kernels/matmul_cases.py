"""Random cases of matrix-multiply workloads: inputs, the kernel's answer and the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from programs import THREADS, call

from mpq_compile.kernels import matmul
from mpq_compile.kernels.packing import (
    bf16_bits,
    compensation,
    pack_epilogue,
    pack_weight,
    padded_channels,
)
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload
from mpq_compile.quant import reference
from mpq_compile.quant.multipliers import ROW_ZERO_POINT

# For emulated instructions: their loops take LLVM seconds to optimize.
PLAIN_TARGET = {**host_tiers()[-1].target(THREADS), "opt-level": 0}
RANGES = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arrays of one call, NHWC or [rows, K]; float arrays hold values exact in their format."""

    x: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    row_scales: np.ndarray | None
    residual: np.ndarray | None
    residual_scale: float
    zero_points: tuple[int, int, int]
    bounds: tuple[float, float]


def make_case(workload: Workload, seed: int) -> Case:
    """Draw a case whose outputs spread over the range of the output format."""
    rng = np.random.default_rng(seed)
    weight = _weights(workload, rng)
    depth = int(np.prod(weight.shape[1:]))
    integer = workload.compute == "int8"
    spread = np.sqrt(depth) * (74 * np.abs(weight).mean() if integer else np.abs(weight).mean())
    wide = 60.0 if workload.out == "u8" else 1.0
    groups = _groups(workload)
    shape = (len(weight), groups) if groups > 1 else (len(weight),)
    dynamic = isinstance(workload, LinearWorkload) and workload.row_scales
    zero_points = (int(rng.integers(0, 256)), int(rng.integers(0, 256)), int(rng.integers(0, 200)))
    if dynamic:
        zero_points = (ROW_ZERO_POINT, *zero_points[1:])
    limits = (-float(zero_points[2]), 255.0 - zero_points[2])
    return Case(
        x=_values(_input_shape(workload), "u8" if integer else _float_format(workload), rng),
        weight=weight,
        scale=(rng.uniform(0.5, 1.5, shape) * wide / max(spread, 1e-6)).astype(np.float32),
        bias=(rng.normal(size=len(weight)) * wide / 4).astype(np.float32),
        row_scales=rng.uniform(0.3, 3.0, workload.rows).astype(np.float32) if dynamic else None,
        residual=_values(_output_shape(workload), workload.residual, rng)
        if workload.residual
        else None,
        residual_scale=float(np.float32(rng.uniform(0.01, 1.0))),
        zero_points=zero_points,
        bounds=limits if workload.out == "u8" else (-0.7, float("inf")),
    )


def expected(workload: Workload, case: Case) -> np.ndarray:
    """Return the oracle's output, channels last; bf16 outputs as float32."""
    zero_point = case.zero_points[0]
    weight = torch.from_numpy(case.weight)
    scale, bias = torch.from_numpy(case.scale), torch.from_numpy(case.bias)
    x = _tensor(case.x, "u8" if workload.compute == "int8" else _float_format(workload))
    residual = None if case.residual is None else _tensor(case.residual, str(workload.residual))
    if workload.compute == "bf16":
        weight = weight.to(torch.bfloat16)
    if isinstance(workload, ConvWorkload):
        acc = reference.conv2d_accumulate(
            x.permute(0, 3, 1, 2),
            weight,
            zero_point,
            workload.stride,
            workload.padding,
            workload.dilation,
            workload.groups,
            workload.input_dilation,
        ).permute(0, 2, 3, 1)
    elif case.row_scales is not None:
        acc = reference.scaled_linear(x, weight, scale, zero_point)
        scale = torch.from_numpy(case.row_scales).unsqueeze(-1)
    elif _groups(workload) > 1:
        acc = reference.grouped_linear(x, weight, scale, bias, zero_point)
        scale, bias = torch.tensor(1.0), torch.tensor(0.0)
    else:
        acc = reference.linear_accumulate(x, weight, zero_point)
    out = reference.epilogue(
        acc, scale, bias, residual, case.residual_scale, case.zero_points, case.bounds,
        workload.out,
    )  # fmt: skip
    return out.to(torch.float32).numpy() if workload.out == "bf16" else out.numpy()


def computed(
    workload: Workload,
    tier: Tier,
    case: Case,
    generate: Callable[[Workload, Tier, int], Any] = matmul.generate,
    target: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Compile for the tier, or for ``target``, and run; the output as ``expected`` gives it."""
    function = generate(workload, tier, THREADS)
    scale = case.scale.T if case.scale.ndim == 2 else case.scale
    record = pack_epilogue(
        compensation(workload, tier, case.weight, case.zero_points[0]),
        scale,
        case.bias,
        case.zero_points,
        case.residual_scale,
        case.bounds,
        padded_channels(workload, tier),
    )
    x = _bordered(workload, case)
    arrays = [_stored(x), pack_weight(workload, tier, case.weight), record]
    if workload.compute in ("bf16", "weight_only"):
        arrays[0] = bf16_bits(x).reshape(-1)
    if case.row_scales is not None:
        arrays.append(case.row_scales)
    if case.residual is not None:
        bits = workload.residual == "bf16"
        arrays.append(bf16_bits(case.residual).reshape(-1) if bits else _stored(case.residual))
    dtype = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}[workload.out]
    out = call(function, tier, arrays, np.full(workload.stored_size, 77, dtype), target)
    result = _without_border(workload, case, out)
    if workload.out == "bf16":
        return (result.astype(np.uint32) << 16).view(np.float32)
    return result


def _bordered(workload: Workload, case: Case) -> np.ndarray:
    """Return the input as it is stored: with its padding where the workload wants that."""
    if not isinstance(workload, ConvWorkload) or not workload.bordered_input:
        return case.x
    top, left, bottom, right = workload.padding
    blank = case.zero_points[0] if workload.compute == "int8" else 0
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    return np.pad(case.x, around, constant_values=blank)


def _without_border(workload: Workload, case: Case, out: np.ndarray) -> np.ndarray:
    """Return the output without its border, which must hold what stands for zero."""
    shape = _output_shape(workload)
    if not isinstance(workload, ConvWorkload) or not any(workload.border):
        return out.reshape(shape)
    top, left, bottom, right = workload.border
    batch, height, width, channels = shape
    whole = out.reshape(batch, height + top + bottom, width + left + right, channels)
    inside = np.zeros(whole.shape, bool)
    inside[:, top : top + height, left : left + width] = True
    blank = case.zero_points[2] if workload.out == "u8" else 0
    assert (whole[~inside] == blank).all(), workload.key
    return whole[inside].reshape(shape)


def assert_matches(workload: Workload, tier: Tier, seed: int = 0, **options: Any) -> None:
    """Integer compute must equal the oracle; float compute agrees within its tolerance."""
    case = make_case(workload, seed)
    got, want = computed(workload, tier, case, **options), expected(workload, case)
    if workload.compute == "int8":
        np.testing.assert_array_equal(got, want, err_msg=f"{tier.name} {workload.key}")
        return
    # One bf16 step of the largest value, one code, or float32 sums in another order.
    tolerance = {"u8": 1.0, "bf16": 2.0**-7 * np.abs(want).max(), "fp32": 2e-4}[workload.out]
    np.testing.assert_allclose(
        got.astype(np.float64), want.astype(np.float64), rtol=0, atol=tolerance,
        err_msg=f"{tier.name} {workload.key}",
    )  # fmt: skip


def _groups(workload: Workload) -> int:
    return workload.weight_groups if isinstance(workload, LinearWorkload) else 1


def _float_format(workload: Workload) -> str:
    return "fp32" if workload.compute == "fp32" else "bf16"


def _weights(workload: Workload, rng: np.random.Generator) -> np.ndarray:
    if isinstance(workload, ConvWorkload):
        shape: tuple[int, ...] = (
            workload.out_channels, workload.in_channels // workload.groups, *workload.kernel,
        )  # fmt: skip
        bits = 8
    else:
        shape, bits = (workload.out_features, workload.in_features), workload.weight_bits
    if workload.compute in ("int8", "weight_only"):
        low, high = RANGES[bits]
        return rng.integers(low, high + 1, shape).astype(np.int8)
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _values(shape: tuple[int, ...], fmt: str | None, rng: np.random.Generator) -> np.ndarray:
    if fmt == "u8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    values = rng.normal(size=shape).astype(np.float32)
    if fmt == "bf16":
        return torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    return values


def _tensor(values: np.ndarray, fmt: str) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    return tensor.to(torch.bfloat16) if fmt == "bf16" else tensor


def _stored(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1)


def _input_shape(workload: Workload) -> tuple[int, ...]:
    if isinstance(workload, LinearWorkload):
        return (workload.rows, workload.in_features)
    return (workload.batch, workload.height, workload.width, workload.in_channels)


def _output_shape(workload: Workload) -> tuple[int, ...]:
    if isinstance(workload, LinearWorkload):
        return (workload.rows, workload.out_features)
    return (workload.batch, workload.out_height, workload.out_width, workload.out_channels)
