"""Attention written out becomes the operator; what only resembles it stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import assert_same, only, prepared
from torch import Tensor, nn

from mpq_compile.passes.base import is_call

aten = torch.ops.aten
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Written(nn.Module):
    """Applies a formula to projections q, k, v of [B, H, T, D] and a mask [1, 1, T, T]."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qkv, self.formula = nn.Linear(12, 36), formula
        self.register_buffer("mask", torch.randn(1, 1, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.formula(q, k, v, self.mask)


def softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


FUSED: dict[str, tuple[Formula, float]] = {
    "plain": (lambda q, k, v, m: softmax(q @ k.mT) @ v, 1.0),
    "divided": (lambda q, k, v, m: softmax(q @ k.mT / 4) @ v, 0.25),
    "multiplied": (lambda q, k, v, m: softmax(0.5 * (q @ k.transpose(2, 3))) @ v, 0.5),
    "query_scaled": (lambda q, k, v, m: softmax((q * 0.3) @ k.mT) @ v, 0.3),
    "both_scaled": (lambda q, k, v, m: softmax((q * 0.5) @ (k * 0.5).mT) @ v, 0.5),
    "masked": (lambda q, k, v, m: softmax(q @ k.mT * 0.4 + m) @ v, 0.4),
    "mask_first": (lambda q, k, v, m: softmax(m + q @ k.mT / 2) @ v, 0.5),
    "guarded": (
        lambda q, k, v, m: torch.where((p := softmax(q @ k.mT + m)).isnan(), 0.0, p) @ v,
        1.0,
    ),
    "filled": (
        lambda q, k, v, m: (p := softmax(q @ k.mT * 0.4)).masked_fill(p.isnan(), 0.0) @ v,
        0.4,
    ),
    "three_axes": (
        lambda q, k, v, m: softmax(torch.bmm(q[:, 0], k[:, 0].mT)) @ v[:, 0],
        1.0,
    ),
    "float_softmax": (
        lambda q, k, v, m: torch.softmax(q @ k.mT, dim=-1, dtype=torch.float32) @ v,
        1.0,
    ),
}
KEPT: dict[str, Formula] = {
    "other_guard": lambda q, k, v, m: torch.where((p := softmax(q @ k.mT)) > 0.1, 0.0, p) @ v,
    "guard_of_another": lambda q, k, v, m: (
        torch.where(q[..., :1].isnan(), 0.0, softmax(q @ k.mT)) @ v
    ),
    "guarded_by_one": lambda q, k, v, m: torch.where((p := softmax(q @ k.mT)).isnan(), 1.0, p) @ v,
    "other_axis": lambda q, k, v, m: torch.softmax(q @ k.mT, -2) @ v,
    "scores_read": lambda q, k, v, m: softmax(s := q @ k.mT) @ v + s.sum(),
    "weights_read": lambda q, k, v, m: (p := softmax(q @ k.mT)) @ v + p.sum(),
    "mask_scaled": lambda q, k, v, m: softmax((q @ k.mT + m) / 2) @ v,
    "clamped": lambda q, k, v, m: softmax((q @ k.mT + m).relu()) @ v,
    "no_softmax": lambda q, k, v, m: (q @ k.mT / 7) @ v,
    "broadcast": lambda q, k, v, m: softmax(q @ k[:, :1].mT) @ v,
}


@pytest.mark.parametrize("name", FUSED)
def test_written_attention_is_fused(name: str) -> None:
    formula, scale = FUSED[name]
    model, x = Written(formula), torch.randn(2, 7, 12)
    module = prepared(model, x).module
    node = only(module, aten.scaled_dot_product_attention.default)
    if name != "both_scaled":
        assert node.kwargs["scale"] == pytest.approx(scale)
    assert not any(is_call(n, aten.softmax.int, aten.matmul.default) for n in module.graph.nodes)
    assert_same(model, module, (x,))


@pytest.mark.parametrize("name", KEPT)
def test_other_chains_stay(name: str) -> None:
    model, x = Written(KEPT[name]), torch.randn(2, 7, 12)
    module = prepared(model, x).module
    targets = [node.target for node in module.graph.nodes]
    assert aten.scaled_dot_product_attention.default not in targets
    assert_same(model, module, (x,))


def test_a_row_that_is_masked_entirely_gives_zeros() -> None:
    """What the guard is for."""
    model, x = Written(FUSED["guarded"][0]), torch.randn(2, 7, 12)
    model.mask[..., 3, :] = float("-inf")
    module = prepared(model, x).module
    only(module, aten.scaled_dot_product_attention.default)
    assert_same(model, module, (x,))
    assert not model(x)[:, :, 3].any()
