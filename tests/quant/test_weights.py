"""Weights: ranges of codes, scales by row and by group, errors that fall with bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.errors import PlanError
from mpq_compile.quant.weights import quantize_weight, weight_spec
from mpq_compile.types import Candidate, QSpec


def spec(bits: int, group: int | None = None) -> QSpec:
    name = f"w{bits}a8" + (f"g{group}" if group else "")
    return weight_spec(Candidate.parse(name))


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_codes_stay_in_range(bits: int, seed: int) -> None:
    codes = quantize_weight(weight(5, 40, seed=seed), spec(bits)).codes
    low = -127 if bits == 8 else -(2 ** (bits - 1))
    assert codes.dtype == torch.int8
    assert low <= codes.min() and codes.max() <= 2 ** (bits - 1) - 1


def test_fewer_bits_use_the_full_range() -> None:
    row = torch.tensor([[-1.0, -0.5, 0.0, 0.5]])
    for bits in (2, 3, 4):
        assert quantize_weight(row, spec(bits)).codes.min() == -(2 ** (bits - 1))


def test_eight_bits_err_by_half_a_step() -> None:
    w = weight(6, 3, 3, 3)
    rounded = quantize_weight(w, spec(8))
    steps = rounded.scale.view(-1, 1, 1, 1)
    assert ((rounded.dequantize() - w).abs() <= steps / 2 * (1 + 1e-4)).all()
    assert (rounded.codes.abs().flatten(1).amax(1) == 127).all()


@pytest.mark.parametrize("shape", [(7, 24), (4, 3, 3, 3), (6, 1, 5, 5)])
def test_the_error_falls_with_bits(shape: tuple[int, ...]) -> None:
    w = weight(*shape)
    errors = [
        (quantize_weight(w, spec(bits)).dequantize() - w).square().sum().item()
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1]


def test_groups_have_their_own_scales() -> None:
    w = weight(5, 64)
    w[:, 32:] *= 20
    whole, grouped = quantize_weight(w, spec(4)), quantize_weight(w, spec(4, 32))
    assert whole.scale.shape == (5,) and grouped.scale.shape == (5, 2)
    assert grouped.codes.shape == whole.codes.shape == w.shape
    errors = [(q.dequantize() - w).square().sum() for q in (whole, grouped)]
    assert errors[1] < errors[0]
    first = quantize_weight(w[:, :32], spec(4))
    assert torch.equal(first.codes, grouped.codes[:, :32])
    assert torch.equal(first.scale, grouped.scale[:, 0])


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(PlanError, match="divide") as caught:
        quantize_weight(weight(4, 40), spec(4, 32))
    assert caught.value.expected == "a divisor of 40"


def test_rows_of_zeros_stay_zero() -> None:
    for bits in (2, 4, 8):
        rounded = quantize_weight(torch.zeros(3, 8), spec(bits))
        assert torch.equal(rounded.dequantize(), torch.zeros(3, 8))
        assert torch.isfinite(rounded.scale).all()


def test_rows_do_not_influence_each_other() -> None:
    w = weight(8, 30)
    both = quantize_weight(w, spec(3))
    alone = quantize_weight(w[2:3], spec(3))
    assert torch.equal(both.codes[2:3], alone.codes) and torch.equal(both.scale[2:3], alone.scale)
