"""The sharpness-aware step: its formula, finite differences, and what it leaves as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mpq_compile.search.sharpness import Plain, SharpnessAware, running_statistics

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def quadratic(theta: Tensor):
    return lambda: 0.5 * theta @ A @ theta


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_step_is_the_mean_of_both_gradients() -> None:
    theta = leaf(1.0, -2.0)
    rule = SharpnessAware(radius=0.05, alignment=1e-3)
    step = rule(quadratic(theta), [theta], [], 0.05)
    g1 = A @ theta.detach()
    e = (0.05 / g1.norm() - 1e-3) * g1
    g2 = A @ (theta.detach() + e)
    assert torch.allclose(step.weights[0], 0.5 * g1 + 0.5 * g2, rtol=1e-12)
    assert step.loss == pytest.approx((0.5 * theta @ A @ theta).item())


def test_it_is_half_the_curvature_along_the_gradient_by_finite_differences() -> None:
    theta = leaf(0.3, -0.7, 0.2)

    def loss() -> Tensor:
        return (theta.sin() * theta.exp()).sum() + theta.prod()

    def gradient(at: Tensor) -> Tensor:
        with torch.no_grad():
            kept = theta.clone()
            slopes = []
            for i in range(3):
                values = []
                for sign in (1, -1):
                    theta.copy_(at)
                    theta[i] += sign * 1e-6
                    values.append(loss())
                slopes.append((values[0] - values[1]) / 2e-6)
            theta.copy_(kept)
        return torch.stack(slopes)

    rule = SharpnessAware(alignment=0.0)
    step = rule(loss, [theta], [], 1e-3)
    here = gradient(theta.detach().clone())
    there = gradient(theta.detach() + 1e-3 * here / here.norm())
    assert torch.allclose(step.weights[0], (here + there) / 2, atol=1e-7)


def test_weights_move_in_one_ball_all_together() -> None:
    a, b = leaf(1.0, 2.0), leaf(4.0)
    seen = []

    def loss() -> Tensor:
        seen.append(torch.cat([a.detach().clone(), b.detach().clone()]))
        return a.square().sum() + b.square().sum()

    SharpnessAware(alignment=0.0)(loss, [a, b], [], 0.05)
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.05)


def test_logits_stay_where_they_are() -> None:
    theta, logits = leaf(1.0, 2.0), leaf(0.5)
    seen = []

    def loss() -> Tensor:
        seen.append(logits.detach().clone())
        return logits[0] * theta.square().sum()

    step = SharpnessAware()(loss, [theta], [logits], 0.05)
    assert torch.equal(seen[0], seen[1])
    assert step.logits[0].item() > theta.detach().square().sum().item()  # the mean of both places


def test_values_are_restored_bit_for_bit() -> None:
    torch.manual_seed(0)
    theta = torch.randn(1000, requires_grad=True)
    before = theta.detach().clone()
    SharpnessAware()(lambda: (theta**4).sum(), [theta], [], 0.1)
    assert torch.equal(theta.detach(), before)
    assert theta.grad is None

    calls = []

    def broken() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no second pass")
        return (theta**2).sum()

    with pytest.raises(RuntimeError):
        SharpnessAware()(broken, [theta], [], 0.1)
    assert torch.equal(theta.detach(), before)


def test_the_radius_follows_the_rise_within_its_bounds() -> None:
    rule = SharpnessAware(least_radius=0.01, most_radius=0.1)
    assert rule.next_radius(1.0, 1.05) == pytest.approx(math.log(1.05))
    assert rule.next_radius(1.0, 9.0) == 0.1
    assert rule.next_radius(1.0, 0.5) == 0.01
    theta = leaf(1.0, -2.0)
    step = rule(quadratic(theta), [theta], [], 0.01)
    g1 = A @ theta.detach()
    moved = theta.detach() + (0.01 / g1.norm() - rule.alignment) * g1
    rise = float(0.5 * moved @ A @ moved) - step.loss
    assert step.radius == pytest.approx(min(0.1, max(0.01, math.log1p(rise))))


def test_nothing_moves_where_the_gradient_is_zero() -> None:
    theta = leaf(0.0, 0.0)
    step = SharpnessAware()(quadratic(theta), [theta], [], 0.05)
    assert step.weights[0].tolist() == [0.0, 0.0]
    assert step.radius == SharpnessAware().least_radius


def test_what_the_loss_does_not_reach_has_no_gradient() -> None:
    theta, idle = leaf(1.0, 1.0), leaf(5.0)
    for rule in (Plain(), SharpnessAware()):
        step = rule(quadratic(theta), [theta, idle], [], 0.05)
        assert step.weights[1].tolist() == [0.0]


def test_batch_norms_see_the_first_pass_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    x, weights = torch.randn(16, 4), list(model.parameters())

    def loss() -> Tensor:
        return model(x).square().mean()

    once = [b.clone() for b in running_statistics(model)]
    assert len(once) == 3  # mean, variance, count
    SharpnessAware()(loss, weights, [], 0.1, running_statistics(model))
    after_step = [b.clone() for b in running_statistics(model)]
    for buffer, value in zip(running_statistics(model), once, strict=True):
        buffer.copy_(value)
    with torch.no_grad():
        loss()
    for found, expected in zip(after_step, running_statistics(model), strict=True):
        assert torch.equal(found, expected)


def test_the_plain_step_is_the_gradient() -> None:
    theta = leaf(1.0, -2.0)
    step = Plain()(quadratic(theta), [theta], [], 0.0)
    assert torch.allclose(step.weights[0], A @ theta.detach())
