"""Our few-row kernels on rotating weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from torch import Tensor

from contenders.gemv import GemvTask, random_codes
from contenders.task import Prepared
from mpq_compile.kernels import elementwise, matmul, quantize_rows
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.packing import pack_convert, packed_weight_size, record_words
from mpq_compile.kernels.tier import Tier, detect_tier
from mpq_compile.kernels.workload import Format, LinearWorkload
from mpq_compile.runtime.engine import placed
from mpq_compile.types import Candidate

# The input's conversion: u8 codes of a scale of 1 / 40, or bf16.
_TO_U8 = pack_convert(0, 40.0, (-128.0, 127.0), 128)
_TO_BF16 = pack_convert(0, 1.0, (-np.inf, np.inf), 0)


def prepare(task: GemvTask, candidate: str) -> Prepared:
    """Compile the conversion of the input and the kernel; fill the copies."""
    chosen, tier = Candidate.parse(candidate), detect_tier()
    integer = chosen.integer_compute
    workload = _workload(task, chosen)
    size, dtype = packed_weight_size(workload, tier)
    words = record_words(workload, tier)
    copies = [
        [tvm.runtime.from_dlpack(array) for array in placed([codes, np.zeros(words, np.int32)])]
        for codes in random_codes(size, dtype, task.copies(chosen.weight_bits))
    ]
    codes = tvm.runtime.tensor(np.zeros(task.inputs, np.uint8 if integer else np.uint16))
    if chosen.dynamic:
        scales = [tvm.runtime.tensor(np.zeros(1, np.float32))]
        rows = QuantizeRowsWorkload(rows=1, features=task.inputs)
        convert, conversion = quantize_rows.generate(rows, tier, task.threads), [codes, *scales]
    else:
        scales = []
        target: Format = "u8" if integer else "bf16"
        whole = ConvertWorkload(size=task.inputs, source="fp32", target=target)
        convert = elementwise.generate(whole, tier, task.threads)
        conversion = [tvm.runtime.tensor(_TO_U8 if integer else _TO_BF16), codes]
    run = _rotation(
        _compiled(convert, tier, task.threads),
        _compiled(matmul.generate(workload, tier, task.threads), tier, task.threads),
        conversion,
        codes,
        scales,
        tvm.runtime.tensor(np.zeros(task.outputs, np.float32)),
        copies,
    )
    return Prepared(run=run, example=task.example, repeats=len(copies))


def _workload(task: GemvTask, chosen: Candidate) -> LinearWorkload:
    return LinearWorkload(
        rows=1,
        in_features=task.inputs,
        out_features=task.outputs,
        compute="int8" if chosen.integer_compute else "weight_only",
        weight_bits=chosen.weight_bits,  # type: ignore[arg-type]
        group_size=chosen.group_size,
        row_scales=chosen.dynamic,
        out="fp32",
    )


def _compiled(function: Any, tier: Tier, threads: int) -> Any:
    return tvm.compile(function, target=tvm.target.Target(tier.target(threads)))["main"]


def _rotation(
    convert: Any,
    multiply: Any,
    conversion: Sequence[Any],
    codes: Any,
    scales: Sequence[Any],
    out: Any,
    copies: Sequence[Sequence[Any]],
) -> Callable[[Tensor], np.ndarray]:
    """Return a call that converts and multiplies once for each copy of the weights."""

    def run(x: Tensor) -> np.ndarray:
        row = tvm.runtime.from_dlpack(x.reshape(-1))
        for parameters in copies:
            convert(row, *conversion)
            multiply(codes, *parameters, *scales, out)
        return out.numpy()

    return run
