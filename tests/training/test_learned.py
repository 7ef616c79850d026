"""Learned step sizes: what they round to, and LSQ's gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpq_compile.quant.observers import affine_qparams, fake_quantize
from mpq_compile.quant.weights import quantize_weight
from mpq_compile.training.learned import (
    LearnedBias,
    LearnedRange,
    LearnedWeight,
    Straight,
    fake_quantize_learned,
)
from mpq_compile.types import QSpec


def spec(bits: int, group_size: int | None = None) -> QSpec:
    return QSpec(bits=bits, signed=True, symmetric=True, axis=0, group_size=group_size)


def straight_through(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """The same by autograd: the error of rounding is a constant."""
    real = torch.clamp(x / scale, low - zero_point, high - zero_point)
    return (real + (real.round() - real).detach()) * scale


@pytest.mark.parametrize("zero_point", [0, 5])
@pytest.mark.parametrize("shape", [(1,), (6, 1)])
def test_gradients_are_those_of_the_straight_through_estimator(
    zero_point: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(6, 50, generator=generator)
    scale = 0.2 + torch.rand(shape, generator=generator)
    weight = torch.randn(6, 50, generator=generator)
    found = []
    for function in (fake_quantize_learned, straight_through):
        inputs = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        y = function(inputs[0], inputs[1], zero_point, 0, 15)
        found.append([y.detach(), *torch.autograd.grad((y * weight).sum(), inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    low, high = -zero_point * scale, (15 - zero_point) * scale
    assert torch.equal(found[0][1] == 0, (x < low) | (x > high))


def test_the_slope_of_the_scale_is_the_published_one() -> None:
    """Round(v) − v inside, the bound outside."""
    x, scale = torch.tensor([0.6, 5.0, -9.0]), torch.tensor(1.0, requires_grad=True)
    for value, slope in zip(x, (0.4, 1.0, -2.0), strict=True):
        y = fake_quantize_learned(value, scale, 0, -2, 1 if value > 1 else 7)
        assert torch.autograd.grad(y, scale)[0].item() == pytest.approx(slope)


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weight_starts_with_its_codes(bits: int, group_size: int | None) -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(bits))
    start = quantize_weight(weight, spec(bits, group_size))
    learned = LearnedWeight(weight, start)
    found = learned.quantized()
    assert torch.equal(found.codes, start.codes) and found.scale.shape == start.scale.shape
    torch.testing.assert_close(found.dequantize(), start.dequantize())
    torch.testing.assert_close(learned().detach(), start.dequantize())
    # Where the code is the nearest one, the weight is the float one.
    rows = start.scale.reshape(5, -1, 1)
    near = ((weight - start.dequantize()).reshape(5, rows.shape[1], -1) / rows).abs() < 0.48
    values = learned.codes.detach() * rows
    assert near.any()
    torch.testing.assert_close(values[near], weight.reshape(values.shape)[near])


def test_a_range_starts_as_calibrated() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    qparams = affine_qparams(-1.0, 2.0, 4)
    learned = LearnedRange(qparams)
    torch.testing.assert_close(learned(x).detach(), fake_quantize(x, qparams))
    found = learned.qparams()
    assert found.scale == pytest.approx(qparams.scale, rel=1e-6)
    assert (found.zero_point, found.spec) == (qparams.zero_point, qparams.spec)


def test_a_bias_moves_in_steps_of_the_output() -> None:
    learned = LearnedBias(torch.tensor([1.0, 2.0]), 0.25)
    assert learned().tolist() == [1.0, 2.0]
    torch.nn.init.constant_(learned.moved, 2.0)
    assert learned().tolist() == [1.5, 2.5]


def test_gradients_pass_a_change_of_format() -> None:
    x = torch.tensor([1.001], requires_grad=True)
    y = Straight(lambda value: value.bfloat16().float())(x)
    assert y.item() == 1.0
    assert torch.autograd.grad(y, x)[0].item() == 1.0
