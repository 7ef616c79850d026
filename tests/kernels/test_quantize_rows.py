"""Rows quantized at run time: codes and scales equal the oracle's bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tiers import DISTINCT_TIERS

from mpq_compile.kernels.elementwise_workload import QuantizeRowsWorkload
from mpq_compile.kernels.quantize_rows import generate
from mpq_compile.quant.reference import fake_quantize_rows, quantize_rows


def rows_of(rows: int, features: int) -> torch.Tensor:
    """Return rows of very different magnitudes: ordinary, zero, tiny, huge, one outlier."""
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(rows))
    factors = torch.tensor([1.0, 0.0, 1e-38, 1e37, 3e-4])
    x *= factors[torch.arange(rows) % len(factors)].unsqueeze(-1)
    x[:, features // 2] *= 2.5
    x[0, -1] = -x[0].abs().max()
    return x


@DISTINCT_TIERS
@pytest.mark.parametrize("rows,features", [(1, 3), (7, 16), (6, 77), (130, 401)])
def test_equals_the_oracle(tier, rows, features):
    x = rows_of(rows, features)
    codes, scales = quantize_rows(x)
    function = generate(QuantizeRowsWorkload(rows=rows, features=features), tier, 2)
    program = tvm.compile(function, target=tvm.target.Target(tier.target(2)))
    found = tvm.runtime.tensor(np.zeros(rows * features, np.uint8))
    found_scales = tvm.runtime.tensor(np.zeros(rows, np.float32))
    program["main"](tvm.runtime.tensor(x.numpy().reshape(-1)), found, found_scales)
    np.testing.assert_array_equal(found.numpy().reshape(rows, features), codes.numpy())
    np.testing.assert_array_equal(found_scales.numpy(), scales.numpy())


def test_rounding_errs_by_half_a_step_at_most():
    x = rows_of(10, 64)
    _, scale = quantize_rows(x)
    error = (fake_quantize_rows(x) - x).abs().amax(-1)
    ordinary = x.abs().amax(-1) > 1e-30
    assert bool((error <= 0.5001 * scale)[ordinary].all())
    assert bool((error[~ordinary] <= x.abs().amax(-1)[~ordinary]).all())


def test_the_largest_magnitude_takes_the_last_code():
    codes, scale = quantize_rows(torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[160, 1, 192], [128, 128, 128]]
    assert float(scale[0]) == pytest.approx(2 / 127) and float(scale[1]) > 0
