"""On a described accelerator a latency budget gives a mix that no uniform assignment beats."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import mpq_compile as mpq
from mpq_compile.demo import DigitsNet, load_digits
from mpq_compile.session import Session

TARGETS = ("systolic_npu", "bit_serial")


@cache
def session(target: str) -> Session:
    """The demo's network on digits of 32 × 32 pixels: early layers compute, late ones load."""
    torch.manual_seed(0)
    images = F.interpolate(load_digits().train[0][:8], 32)
    return Session(DigitsNet().eval(), images[:1], [images], target)


def uniform(made: Session, name: str) -> dict[str, str]:
    """All sites at a candidate, those that cannot have it at their first."""
    return {s: name if name in names else names[0] for s, names in made.choices.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_a_latency_budget_gives_a_mix(target: str) -> None:
    made = session(target)
    allocation = made.allocation()
    totals = {
        name: allocation.usage(uniform(made, name))["latency_us"] for name in made.profile.defaults
    }
    slowest, fastest = max(totals.values()), min(totals.values())
    budget_ms = (0.5 * slowest + 0.5 * fastest) / 1e3
    plan = made.solve(mpq.Budget(latency_ms=budget_ms))
    assert plan.predicted.latency_ms is not None
    assert plan.predicted.latency_ms <= budget_ms * (1 + 1e-9)
    assert len(Counter(plan.assignment.values())) >= 2, plan.assignment
    inside = [name for name, total in totals.items() if total <= budget_ms * 1e3]
    assert inside and all(plan.loss < allocation.loss(uniform(made, name)) for name in inside)


def test_the_array_mixes_three_pairs() -> None:
    """4-bit weights where loading decides, 4-bit activations too where products do."""
    made = session("systolic_npu")
    allocation = made.allocation()
    low, high = (allocation.usage(uniform(made, c))["latency_us"] for c in ("w4a4", "w8a8"))
    found = set()
    for share in (0.2, 0.4, 0.6, 0.8):
        plan = made.solve(mpq.Budget(latency_ms=(low + share * (high - low)) / 1e3))
        found |= {frozenset(plan.assignment.values())}
    assert frozenset(("w8a8", "w4a8", "w4a4")) in found
