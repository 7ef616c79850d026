"""What decoders write in several ways has one form: norms, rotations, heads, cache writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, calls, only, prepared
from torch import Tensor, nn

from mpq_compile.passes import ops

aten = torch.ops.aten
POSITIONS = torch.tensor([4, 1])


class Formula(nn.Module):
    """Applies a function to its inputs and a weight [16]."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.function, self.weight = function, nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.weight, *inputs)


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True) + 1e-6


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "llama": lambda w, x: w * (x.float() * torch.rsqrt(mean_square(x))).to(x.dtype),
    "weight_last": lambda w, x: x * torch.rsqrt(mean_square(x)) * w,
    "squared_by_product": lambda w, x: x * torch.rsqrt((x * x).mean(-1, True) + 1e-6) * w,
    "divided": lambda w, x: x / torch.sqrt(mean_square(x)) * w,
    "reciprocal": lambda w, x: x * torch.sqrt(mean_square(x)).reciprocal() * w,
    "gemma": lambda w, x: x * torch.rsqrt(mean_square(x)) * (1.0 + w),
    "without_weight": lambda w, x: x * torch.rsqrt(mean_square(x)),
}
NO_NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "other_axis": lambda w, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * w,
    "cubed": lambda w, x: x * torch.rsqrt(x.abs().pow(3).mean(-1, True) + 1e-6) * w,
    "another": lambda w, x: (x + 1) * torch.rsqrt(mean_square(x)) * w,
    "read_between": lambda w, x: (m := mean_square(x)) + x * torch.rsqrt(m) * w,
}


@pytest.mark.parametrize("name", NORMS)
def test_a_written_out_norm_is_fused(name: str) -> None:
    model, x = Formula(NORMS[name]), torch.randn(3, 5, 16)
    module = prepared(model, x).module
    node = only(module, aten.rms_norm.default)
    assert node.args[3] == 1e-6 and (node.args[2] is None) == (name == "without_weight")
    assert_same(model, module, (x,))


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_resembles_a_norm_stays(name: str) -> None:
    model, x = Formula(NO_NORMS[name]), torch.randn(3, 5, 16)
    module = prepared(model, x).module
    assert not calls(module)["rms_norm"]
    assert_same(model, module, (x,))


def turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


ROTATIONS: dict[str, Callable[..., Tensor]] = {
    "llama": lambda _, x, c, s: x * c + turned(x) * s,
    "swapped": lambda _, x, c, s: s * turned(x) + c * x,
}
NO_ROTATIONS: dict[str, Callable[..., Tensor]] = {
    "halves_swapped": lambda _, x, c, s: x * c + torch.cat((-x[..., :8], x[..., 8:]), -1) * s,
    "first_negative": lambda _, x, c, s: x * c + torch.cat((x[..., 8:], -x[..., :8]), -1) * s,
    "of_another": lambda _, x, c, s: x * c + turned(x + 1) * s,
    "wider_table": lambda _, x, c, s: x[:1] * c + turned(x[:1]) * s.expand(2, 3, 5, 16),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_rotation_is_fused(name: str) -> None:
    inputs = torch.randn(2, 3, 5, 16), torch.randn(1, 1, 5, 16), torch.randn(1, 1, 5, 16)
    model = Formula(ROTATIONS[name])
    module = prepared(model, *inputs).module
    only(module, ops.rotary)
    assert_same(model, module, inputs)


@pytest.mark.parametrize("name", NO_ROTATIONS)
def test_what_resembles_a_rotation_stays(name: str) -> None:
    inputs = torch.randn(2, 3, 5, 16), torch.randn(1, 1, 5, 16), torch.randn(1, 1, 5, 16)
    model = Formula(NO_ROTATIONS[name])
    module = prepared(model, *inputs).module
    assert not calls(module)["rotary"]
    assert_same(model, module, inputs)


WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "index_copy": lambda cache, rows, at: cache.index_copy(2, at, rows),
    "negative_axis": lambda cache, rows, at: cache.index_copy(-2, at, rows),
    "index_put": lambda cache, rows, at: aten.index_put(cache, [None, None, at], rows),
    "assigned": lambda cache, rows, at: _assigned(cache, rows, at),
    "one_position": lambda cache, rows, at: cache.index_copy(2, at[0], rows[:, :, :1]),
    "slice": lambda cache, rows, at: torch.slice_scatter(cache, rows, 2, 3, 5),
    "select": lambda cache, rows, at: torch.select_scatter(cache, rows[:, :, 0], 2, -1),
}


def _assigned(cache: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    cache = cache.clone()
    cache[:, :, at] = rows
    return cache


@pytest.mark.parametrize("name", WRITES)
def test_writes_have_one_form(name: str) -> None:
    inputs = torch.randn(1, 3, 7, 4), torch.randn(1, 3, 2, 4), POSITIONS
    model = Formula(lambda _, *tensors: WRITES[name](*tensors) + 0.0)
    module = prepared(model, *inputs).module
    assert only(module, ops.write_rows).args[3] % 4 == 2
    assert_same(model, module, inputs)


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, keys, depth = x.shape
    wide = x[:, :, None].expand(batch, heads, times, keys, depth)
    return wide.reshape(batch, heads * times, keys, depth)


SHARED: dict[str, Callable[..., Tensor]] = {
    "repeated": lambda _, q, k, v, m: F.scaled_dot_product_attention(
        q, repeated(k, 3), repeated(v, 3), attn_mask=m
    ),
    "flag": lambda _, q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, attn_mask=m, enable_gqa=True
    ),
    "written_out": lambda _, q, k, v, m: (
        torch.softmax(q @ repeated(k, 3).transpose(2, 3) * 0.3 + m, -1) @ repeated(v, 3)
    ),
}


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("name", SHARED)
def test_heads_that_share_keys(name: str, queries: int) -> None:
    q, mask = torch.randn(1, 6, queries, 8), torch.randn(1, 1, queries, 10)
    inputs = q, torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8), mask
    model = Formula(SHARED[name])
    module = prepared(model, *inputs).module
    node = only(module, aten.scaled_dot_product_attention.default)
    assert not node.kwargs.get("enable_gqa", False)
    if queries == 1:  # rows of one head: keys are read where they lie
        assert not calls(module)["expand"]
    assert_same(model, module, inputs)


def test_positions_and_masks_of_numbers_are_constants() -> None:
    model = Formula(
        lambda _, x: x.masked_fill(torch.ones(5, 5).tril()[:, :4] == 0, -1.5) + torch.arange(4)
    )
    x = torch.randn(3, 5, 4)
    module = prepared(model, x).module
    assert not calls(module)["arange"] and not calls(module)["tril"] and not calls(module)["eq"]
    assert_same(model, module, (x,))
