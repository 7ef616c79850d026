"""Layer norm kernels against PyTorch: float results to rounding, conversions of them exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor

from mpq_compile.kernels import layer_norm
from mpq_compile.kernels.elementwise_workload import NormWorkload
from mpq_compile.kernels.emit import FORMAT_DTYPE
from mpq_compile.kernels.packing import bf16_bits, pack_convert
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.quant import reference

THREADS = 2
TIERS = host_tiers()
INFINITE = (float("-inf"), float("inf"))
CODES = (30.0, (-120.0, 135.0), 120)  # scale, bounds, zero point of a u8 output


@pytest.fixture(params=TIERS, ids=[tier.name for tier in TIERS])
def tier(request: pytest.FixtureRequest) -> Tier:
    return request.param


def drawn(workload: NormWorkload) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Return the stored input, the same as float32, and its record."""
    rng = np.random.default_rng(workload.columns)
    size = workload.rows * workload.columns
    if workload.source == "u8":
        codes = rng.integers(0, 256, size).astype(np.uint8)
        real = torch.from_numpy((codes.astype(np.float32) - 77) * np.float32(0.05))
        return codes, real, pack_convert(77, 0.05, INFINITE, 0)
    values = rng.normal(0.7, 2.0, size).astype(np.float32)
    record = pack_convert(0, 1.0, INFINITE, 0)
    if workload.source == "fp32":
        return values, torch.from_numpy(values), record
    bits = bf16_bits(values)
    return bits, torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32)), record


def run(workload: NormWorkload, tier: Tier) -> tuple[list[np.ndarray], Tensor]:
    """Return the kernel's outputs as stored, and PyTorch's float32 result, flat."""
    stored, real, record = drawn(workload)
    rng = np.random.default_rng(1)
    factors, offsets = (rng.normal(1, 0.3, workload.columns).astype(np.float32) for _ in range(2))
    records = [record]
    for fmt in workload.outputs:
        scale, bounds, zero_point = CODES if fmt == "u8" else (1.0, INFINITE, 0)
        records.append(pack_convert(0, scale, bounds, zero_point))
    used = [factors] * workload.scaled + [offsets] * workload.shifted
    program = tvm.compile(layer_norm.generate(workload, tier, THREADS), target=tier.target(THREADS))
    arrays = [stored, np.concatenate(records), *used]
    outputs = [
        tvm.runtime.tensor(np.zeros(stored.size, FORMAT_DTYPE[fmt])) for fmt in workload.outputs
    ]
    program["main"](*(tvm.runtime.tensor(array) for array in arrays), *outputs)
    rows = real.reshape(workload.rows, workload.columns)
    shape = [workload.columns]
    weight = torch.from_numpy(factors) if workload.scaled else None
    if workload.centred:
        bias = torch.from_numpy(offsets) if workload.shifted else None
        exact = F.layer_norm(rows, shape, weight, bias, workload.epsilon)
    else:
        exact = F.rms_norm(rows, shape, weight, workload.epsilon)
    return [output.numpy() for output in outputs], exact.reshape(-1)


@pytest.mark.parametrize("source", ["u8", "bf16", "fp32"])
@pytest.mark.parametrize("columns", [1, 7, 32, 65, 384])
def test_rows_are_normalized(columns: int, source: str, tier: Tier) -> None:
    workload = NormWorkload(
        rows=5,
        columns=columns,
        epsilon=1e-5,
        source=source,
        outputs=("fp32",),  # type: ignore[arg-type]
    )
    (found,), exact = run(workload, tier)
    torch.testing.assert_close(torch.from_numpy(found), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "centred,scaled,shifted",
    [(True, False, False), (True, True, False), (False, True, False), (False, False, False)],
)
def test_variants(centred: bool, scaled: bool, shifted: bool, tier: Tier) -> None:
    workload = NormWorkload(
        rows=3,
        columns=53,
        epsilon=1e-3,
        centred=centred,
        scaled=scaled,
        shifted=shifted,
        source="fp32",
        outputs=("fp32",),
    )
    (found,), exact = run(workload, tier)
    torch.testing.assert_close(torch.from_numpy(found), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows,columns", [(3, 40), (200, 190)])
def test_all_formats_at_once(rows: int, columns: int, tier: Tier) -> None:
    workload = NormWorkload(
        rows=rows, columns=columns, epsilon=1e-5, source="fp32", outputs=("fp32", "u8", "bf16")
    )
    (fp32, codes, bits), exact = run(workload, tier)
    torch.testing.assert_close(torch.from_numpy(fp32), exact, rtol=1e-5, atol=1e-5)
    scale, bounds, zero_point = CODES
    expected = reference.convert(torch.from_numpy(fp32), 0, scale, bounds, zero_point, "u8")
    assert torch.equal(torch.from_numpy(codes), expected)
    assert np.array_equal(bits, bf16_bits(fp32))
