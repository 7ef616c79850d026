"""Masks that a model computes: as small as what they depend on, with the same values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import after, assert_same, calls, captured, prepared
from torch import Tensor, nn

from mpq_compile.passes.base import is_call
from mpq_compile.passes.fold_constants import FoldConstants
from mpq_compile.passes.sink_expands import SinkExpands

SDPA = torch.ops.aten.scaled_dot_product_attention.default
HIDDEN = torch.finfo(torch.float32).min
Mask = Callable[[Tensor], Tensor]


def indexed(seen: Tensor) -> Tensor:
    """As transformers vectorises a mask function: ranges that index the padding mask."""
    batch, length = torch.arange(seen.shape[0]), torch.arange(6)
    everywhere = length[None, None, :, None] >= 0
    kept = seen.to(torch.bool)[batch[:, None, None, None], length[None, None, None, :]]
    return (everywhere & kept).expand(seen.shape[0], -1, 6, 6)


def chosen(seen: Tensor) -> Tensor:
    """An additive mask, chosen after the copies."""
    return torch.where(indexed(seen), torch.tensor(0.0), HIDDEN)


def older(seen: Tensor) -> Tensor:
    """An additive mask as earlier versions compute it."""
    wide = seen[:, None, None, :].expand(seen.shape[0], 1, 6, 6).to(torch.float32)
    return (1.0 - wide) * HIDDEN


class Masked(nn.Module):
    """Attention of [B, 6, 8] with a mask made of int64 [B, 6]."""

    def __init__(self, mask: Mask, written: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.mask, self.written = nn.Linear(8, 24), mask, written

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.written:
            return torch.softmax(q @ k.mT * 0.5 + self.mask(seen), -1) @ v
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask(seen))


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    seen = (torch.arange(6) < torch.arange(2, 2 + batch)[:, None]).long()
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(2)), seen


@pytest.mark.parametrize(
    "mask,written",
    [(indexed, False), (chosen, False), (chosen, True), (older, False), (older, True)],
)
def test_attention_reads_the_mask_without_its_copies(mask: Mask, written: bool) -> None:
    model = Masked(mask, written).eval()
    network = prepared(model, *inputs(2))
    (attention,) = [n for n in network.module.graph.nodes if is_call(n, SDPA)]
    found = attention.args[3] if len(attention.args) > 3 else attention.kwargs["attn_mask"]
    assert network.shapes[found.name][0] == (2, 1, 1, 6)
    counted = calls(network.module)
    assert not {"index", "expand", "arange", "__and__"} & set(counted)
    assert_same(model, network.module, inputs(2))
    assert_same(model, network.module, inputs(3))


class Gathers(nn.Module):
    """Indexing that is no view: another order, and another length."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.tensor([2, 0, 1])
        rows, columns = torch.arange(2)[:, None], order[None, :]
        return x[:2, :3][rows, columns]


def test_other_indices_stay() -> None:
    graph = captured(Gathers(), torch.randn(2, 3)).module
    assert calls(after(graph, FoldConstants(), SinkExpands()))["index"] == 1
