"""Decoders with a KV cache as explicit inputs and outputs, with random weights.

``forward(tokens, positions, *cache)`` takes int64 tokens [1, T] and their positions [T], and the
cache as 2 · layers tensors [1, heads, S, D] (keys, values, keys, …). It returns the logits of the
last token, float32 [1, vocabulary], and the cache with T rows written at the positions. T = 1 is a
decode step, longer T a prefill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a decoder; ``shared`` are the heads that keys and values have."""

    width: int
    layers: int
    heads: int
    shared: int
    vocabulary: int
    cache: int

    @property
    def depth(self) -> int:
        """Columns of a head."""
        return self.width // self.heads

    def empty_cache(self) -> list[Tensor]:
        """Return a cache in which nothing was written."""
        shape = (1, self.shared, self.cache, self.depth)
        return [torch.zeros(shape) for _ in range(2 * self.layers)]

    def step(self, seed: int, position: int, tokens: int = 1) -> tuple[Tensor, ...]:
        """Return inputs of a step at ``position``, the cache before it filled at random."""
        generator = torch.Generator().manual_seed(seed)
        cache = self.empty_cache()
        for part in cache:
            part[:, :, :position] = torch.randn(part[:, :, :position].shape, generator=generator)
        drawn = torch.randint(0, self.vocabulary, (1, tokens), generator=generator)
        return drawn, torch.arange(position, position + tokens), *cache


def seen_keys(positions: Tensor, size: int) -> Tensor:
    """Return the mask [T, S]: each token attends to positions up to its own."""
    return torch.arange(size) <= positions[:, None]


class GptBlock(nn.Module):
    """Layer norm, joint projection of q, k and v, GELU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, positions: Tensor, seen: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        keys, values = keys.index_copy(2, positions, k), values.index_copy(2, positions, v)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x, keys, values


class GptDecoder(nn.Module):
    """A GPT-2-like decoder: learned positions, one projection onto the vocabulary."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.cache, size.width)
        self.blocks = nn.ModuleList(GptBlock(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        x = self.tokens(tokens) + self.places(positions)
        seen = seen_keys(positions, self.size.cache)
        changed: list[Tensor] = []
        for block, keys, values in _layers(self.blocks, cache):
            x, keys, values = block(x, positions, seen, keys, values)
            changed += [keys, values]
        return (self.head(self.norm(x[:, -1])), *changed)


class WrittenOutNorm(nn.Module):
    """RMS norm as Hugging Face's LlamaRMSNorm writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype)


def rotate_half(x: Tensor) -> Tensor:
    """Return [−second half, first half] of the last axis."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


class LlamaBlock(nn.Module):
    """RMS norm, rotary embedding, grouped queries, gated SiLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, shared = size.width, size.shared * size.depth
        self.size = size
        self.norm1, self.norm2 = WrittenOutNorm(width), nn.RMSNorm(width, eps=1e-5)
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, shared, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor,
        keys: Tensor, values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch, tokens, width = x.shape
        cos, sin = turn
        y = self.norm1(x)
        q, k, v = (
            part(y).view(batch, tokens, -1, self.size.depth).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        keys, values = keys.index_copy(2, positions, k), values.index_copy(2, positions, v)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), keys, values


class LlamaDecoder(nn.Module):
    """A Llama-like decoder; its tables of sines and cosines are indexed by the positions."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList(LlamaBlock(size) for _ in range(size.layers))
        self.norm = WrittenOutNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        rates = 1e4 ** -(torch.arange(0, size.depth, 2) / size.depth)
        angles = torch.outer(torch.arange(size.cache), torch.cat((rates, rates)))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        x = self.tokens(tokens)
        turn = self.cos[positions][None, None], self.sin[positions][None, None]
        seen = seen_keys(positions, self.size.cache)
        changed: list[Tensor] = []
        for block, keys, values in _layers(self.blocks, cache):
            x, keys, values = block(x, positions, turn, seen, keys, values)
            changed += [keys, values]
        return (self.head(self.norm(x[:, -1])), *changed)


def _layers(
    blocks: nn.ModuleList, cache: tuple[Tensor, ...]
) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    return zip(blocks, cache[::2], cache[1::2], strict=True)


def make(kind: str, size: Size, seed: int = 0) -> nn.Module:
    """Return a decoder, ``"gpt"`` or ``"llama"``, with fixed random weights."""
    torch.manual_seed(seed)
    return {"gpt": GptDecoder, "llama": LlamaDecoder}[kind](size).eval()
