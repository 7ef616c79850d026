"""Comparison of what a network gives with what its oracle gives."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

FLOAT_TOLERANCE = 1e-5
# A sum that falls on the other side of a rounding boundary moves a bf16 value by 2^-8 of itself.
BF16_TOLERANCE = 2e-2


def assert_equal(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Compare trees of tensors: bit for bit, or relative to the largest value."""
    found_leaves, found_tree = pytree.tree_flatten(found)
    leaves, tree = pytree.tree_flatten(expected)
    assert found_tree == tree
    for a, b in zip(found_leaves, leaves, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if tolerance:
            assert (a - b).abs().max() <= tolerance * b.abs().max()
        else:
            assert torch.equal(a, b)


def decibels(found: Any, exact: Any) -> float:
    """Return the least signal-to-noise ratio over the outputs."""
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(exact), strict=True)
    ratios = [b.square().sum() / (a - b).square().sum().clamp_min(1e-20) for a, b in pairs]
    return float(10 * torch.log10(min(ratios)).detach())
