"""What a kernel must compute before its time is believed: the oracle, asked with the same arrays.

Integer kernels must give the oracle's very bits; float kernels may differ by the order of their
sums. All pixels and rows are compared; of a large layer, some of the output channels are: the
first, the last and others between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mpq_compile.errors import DeviceError
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.quant import reference
from mpq_compile.runtime import kernel_case as cases
from mpq_compile.runtime.kernel_case import Case, Matmul
from mpq_compile.runtime.kernel_timing import SEED, Run, Task, Workload

# Multiply-adds of the oracle for one kernel: some hundredths of a second.
_ORACLE_MACS = 2**27


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an output must hold.

    Args:
        values: Of the compared channels; bf16 as float32.
        channels: Numbers of the compared output channels; None for all.
        tolerance: Largest difference; 0 for equal bits.
        zero: What stands for zero: it fills a border.
    """

    values: np.ndarray
    channels: np.ndarray | None = None
    tolerance: float = 0.0
    zero: int = 0


def check_exact(kernels: Iterable[tuple[Task, Run]], device: str) -> None:
    """Run each kernel once and compare what it wrote with the oracle.

    Raises:
        DeviceError: A kernel computes something else; the error names it and the device.
    """
    known: dict[Workload, list[Expected]] = {}
    for task, run in kernels:
        workload = task.workload
        if workload not in known:
            known[workload] = expected_outputs(workload)
        for expected, stored in zip(known[workload], run.outputs(), strict=True):
            difference = _difference(workload, expected, stored)
            if difference is not None:
                raise _wrong(task, device, expected, difference)


def expected_outputs(workload: Workload) -> list[Expected]:
    """Return what a kernel must write when it is called with ``kernel_arguments``."""
    if isinstance(workload, QuantizeRowsWorkload):
        rows = torch.from_numpy(cases.row_values(workload.rows, workload.features, SEED))
        return [Expected(values=out.numpy().reshape(-1)) for out in reference.quantize_rows(rows)]
    if isinstance(workload, ConvertWorkload):
        return [Expected(values=_converted(workload))]
    if isinstance(workload, EmbeddingWorkload):
        return [Expected(values=_looked_up(workload))]
    case, channels = _sampled(workload, cases.make_case(workload, SEED))
    values = oracle(workload, case)
    return [
        Expected(
            values=values,
            channels=channels,
            tolerance=float_tolerance(workload, values),
            zero=case.zero_points[2] if workload.out == "u8" else 0,
        )
    ]


def oracle(workload: Matmul, case: Case) -> np.ndarray:
    """Return the oracle's output of a case, channels last; bf16 outputs as float32."""
    weight = torch.from_numpy(case.weight)
    scale, bias = torch.from_numpy(case.scale), torch.from_numpy(case.bias)
    x = _tensor(case.x, cases.input_format(workload))
    if workload.compute == "bf16":
        weight = weight.to(torch.bfloat16)
    if isinstance(workload, ConvWorkload):
        acc = _convolved(workload, x, weight, case.zero_points[0])
    elif case.row_scales is not None:
        acc = reference.scaled_linear(x, weight, scale, case.zero_points[0])
        scale = torch.from_numpy(case.row_scales).unsqueeze(-1)
    elif scale.dim() == 2:
        acc = reference.grouped_linear(x, weight, scale, bias, case.zero_points[0])
        scale, bias = torch.tensor(1.0), torch.tensor(0.0)
    else:
        acc = reference.linear_accumulate(x, weight, case.zero_points[0])
    residual = None if case.residual is None else _tensor(case.residual, str(workload.residual))
    out = reference.epilogue(
        acc, scale, bias, residual, case.residual_scale, case.zero_points, case.bounds,
        workload.out,
    )  # fmt: skip
    return out.to(torch.float32).numpy() if workload.out == "bf16" else out.numpy()


def float_tolerance(workload: Matmul, values: np.ndarray) -> float:
    """Return how far a kernel may be from the oracle's values: not at all with integers.

    Float kernels: one code, one bf16 step of the largest value, or float32 sums in another order.
    """
    if workload.compute == "int8":
        return 0.0
    return {"u8": 1.0, "bf16": 2.0**-7 * float(np.abs(values).max()), "fp32": 2e-4}[workload.out]


def _convolved(workload: ConvWorkload, x: Tensor, weight: Tensor, zero_point: int) -> Tensor:
    acc = reference.conv2d_accumulate(
        x.permute(0, 3, 1, 2),
        weight,
        zero_point,
        workload.stride,
        workload.padding,
        workload.dilation,
        workload.groups,
        workload.input_dilation,
    )
    return acc.permute(0, 2, 3, 1)


def _converted(workload: ConvertWorkload) -> np.ndarray:
    case = cases.make_convert_case(workload, SEED)
    x = _tensor(case.x, workload.source)
    zero_in, zero_out = case.zero_points
    out = reference.convert(x, zero_in, case.scale, case.bounds, zero_out, workload.target)
    return out.to(torch.float32).numpy() if workload.target == "bf16" else out.numpy()


def _looked_up(workload: EmbeddingWorkload) -> np.ndarray:
    case = cases.make_embedding_case(workload, SEED)
    arrays = (case.numbers, case.table, case.scale)
    return reference.embedding(*map(torch.from_numpy, arrays)).numpy().reshape(-1)


def _sampled(workload: Matmul, case: Case) -> tuple[Case, np.ndarray | None]:
    """Return the case of some output channels and their numbers, where the layer is large."""
    outputs = len(case.weight)
    count = max(2, outputs * _ORACLE_MACS // workload.macs)
    grouped = isinstance(workload, ConvWorkload) and workload.groups > 1
    if grouped or count >= outputs:
        return case, None
    channels = np.linspace(0, outputs - 1, count).astype(int)
    residual = None if case.residual is None else case.residual[..., channels]
    return (
        replace(
            case,
            weight=case.weight[channels],
            scale=case.scale[channels],
            bias=case.bias[channels],
            residual=residual,
        ),
        channels,
    )


def _difference(workload: Workload, expected: Expected, stored: np.ndarray) -> str | None:
    """Return in words how an output differs from what is expected; None where it does not."""
    values = cases.as_values(stored)
    if isinstance(workload, (ConvWorkload, LinearWorkload)):
        values, blank = cases.inside(workload, values, expected.zero)
        if not blank:
            return f"a border that holds more than {expected.zero}"
        values = values if expected.channels is None else values[..., expected.channels]
    distance = np.abs(values.astype(np.float64) - expected.values)
    wrong = ~(distance <= expected.tolerance)  # a NaN is wrong
    return f"{wrong.sum()} of {wrong.size} values differ" if wrong.any() else None


def _wrong(task: Task, device: str, expected: Expected, difference: str) -> DeviceError:
    tolerance = expected.tolerance
    schedule = "" if task.choice is None else f"/{task.choice}"
    return DeviceError(
        "the kernel computes something else than its oracle on this device",
        where=f"{device}: {task.operator} {task.workload.key}{schedule}",
        expected=f"values within {tolerance:.2g} of the oracle" if tolerance else "equal bits",
        found=difference,
        remedy="do not use this device, or report the kernel; its time was not stored",
    )


def _tensor(values: np.ndarray, fmt: str) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.to(torch.bfloat16) if fmt == "bf16" else tensor
