"""Random cases of attention workloads: inputs, the kernel's answer and the oracle's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor

from mpq_compile.kernels import attention
from mpq_compile.kernels.attention_workload import AttentionWorkload, Layout, heads_first
from mpq_compile.kernels.emit import FORMAT_DTYPE
from mpq_compile.kernels.packing import bf16_bits, pack_attention
from mpq_compile.kernels.tier import Tier
from mpq_compile.quant.attention import attention as oracle

THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """Operands as flat buffers of float32 values exact in their format; see ``oracle``."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray | None
    scale: float
    out_scale: float
    zero_points: tuple[int, int, int]
    bounds: tuple[float, float]


def workload(
    batch: int, heads: int, queries: int, keys: int, depth: int, values: int, **options: Any
) -> AttentionWorkload:
    """Return a workload with contiguous operands."""
    plain = AttentionWorkload(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        depth=depth,
        value_depth=values,
        q=heads_first(batch, heads, queries, depth),
        k=heads_first(batch, heads, keys, depth),
        v=heads_first(batch, heads, keys, values),
        output=heads_first(batch, heads, queries, values),
    )
    return replace(plain, **options)


def make_case(work: AttentionWorkload, seed: int) -> Case:
    """Draw a case whose scores spread over several units."""
    rng = np.random.default_rng(seed)
    integer = work.compute == "int8"

    def values(layout: Layout) -> np.ndarray:
        if integer:
            return rng.integers(0, 256, layout.size).astype(np.float32)
        drawn = rng.normal(size=layout.size).astype(np.float32)
        if work.compute == "bf16":
            drawn = (bf16_bits(drawn).astype(np.uint32) << 16).view(np.float32)
        return drawn

    unit = 74.0 if integer else 1.0
    mask = None
    if work.mask is not None:
        mask = rng.normal(size=work.mask.size).astype(np.float32)
        mask[rng.random(work.mask.size) < 0.3] = -np.inf
    zero_points = tuple(int(z) for z in rng.integers(0, 200, 3)) if integer else (0, 0, 0)
    zero_point = zero_points[2]
    if work.out == "u8":
        out_scale, bounds = 40.0 / unit, (-float(zero_point), 255.0 - zero_point)
    else:
        out_scale, bounds, zero_points = 1.0 / unit, (-0.9, float("inf")), (*zero_points[:2], 0)
    return Case(
        q=values(work.q),
        k=values(work.k),
        v=values(work.v),
        mask=mask,
        scale=float(np.float32(2.0 / (np.sqrt(work.depth) * unit**2))),
        out_scale=float(np.float32(out_scale)),
        zero_points=zero_points,  # type: ignore[arg-type]
        bounds=bounds,
    )


def expected(work: AttentionWorkload, case: Case) -> Tensor:
    """Return the oracle's output, [batch, heads, queries, value_depth], widened to float32."""
    dtype = {"int8": torch.uint8, "bf16": torch.bfloat16, "fp32": torch.float32}[work.compute]
    q, k, v = (
        _strided(work, flat, layout, rows, columns).to(dtype)
        for flat, layout, rows, columns in (
            (case.q, work.q, work.queries, work.depth),
            (case.k, work.k, work.keys, work.depth),
            (case.v, work.v, work.keys, work.value_depth),
        )
    )
    mask = None
    if case.mask is not None and work.mask is not None:
        mask = _strided(work, case.mask, work.mask, work.queries, work.keys)
    out = oracle(
        q,
        k,
        v,
        mask,
        work.causal,
        case.scale,
        case.zero_points,
        case.out_scale,
        case.bounds,
        work.out,
    )
    return out.to(torch.float32)


def found(
    work: AttentionWorkload, case: Case, tier: Tier, target: Any = None, **options: Any
) -> Tensor:
    """Run the kernel, generated with ``options``; return its output like :func:`expected`."""
    program = tvm.compile(
        attention.generate(work, tier, THREADS, **options), target=target or tier.target(THREADS)
    )
    fmt = "u8" if work.compute == "int8" else work.compute
    arrays = [_stored(flat, fmt) for flat in (case.q, case.k, case.v)]
    arrays.append(pack_attention(case.zero_points, case.scale, case.out_scale, case.bounds))
    arrays += [case.mask] if case.mask is not None else []
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    out = tvm.runtime.tensor(np.zeros(work.output.size, FORMAT_DTYPE[work.out]))
    program["main"](*tensors, out)
    flat = out.numpy()
    if work.out == "bf16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return _strided(work, flat, work.output, work.queries, work.value_depth).to(torch.float32)


def _stored(flat: np.ndarray, fmt: str) -> np.ndarray:
    return bf16_bits(flat) if fmt == "bf16" else flat.astype(FORMAT_DTYPE[fmt])


def _strided(
    work: AttentionWorkload, flat: np.ndarray, layout: Layout, rows: int, columns: int
) -> Tensor:
    shape = (work.batch, work.heads, rows, columns)
    return torch.from_numpy(flat).as_strided(shape, (*layout.strides, 1), layout.offset)
