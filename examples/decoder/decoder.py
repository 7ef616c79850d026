"""A small decoder with a KV cache as explicit inputs and outputs; weights are random."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, VOCABULARY, CACHE = 512, 4, 8, 8000, 128


class Block(nn.Module):
    """RMS norm, attention over the cache, gated SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, positions: Tensor, turn, seen: Tensor, keys: Tensor, values):
        batch, tokens, width = x.shape
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        # The cache is an input that is returned with rows written into it: the compiled network
        # writes them in place where it is asked to.
        keys = keys.index_copy(2, positions, rotate(k, *turn))
        values = values.index_copy(2, positions, v)
        y = F.scaled_dot_product_attention(rotate(q, *turn), keys, values, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), keys, values


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotary embedding of x [B, H, T, D]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Decoder(nn.Module):
    """(tokens [1, T], positions [T], cache…) → (logits of the last token [1, V], cache…)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-5)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        depth = WIDTH // HEADS
        rates = 1e4 ** -(torch.arange(0, depth, 2) / depth)
        angles = torch.outer(torch.arange(CACHE), torch.cat((rates, rates)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, positions: Tensor, *cache: Tensor):
        x = self.tokens(tokens)
        turn = self.cos[positions][None, None], self.sin[positions][None, None]
        seen = torch.arange(CACHE) <= positions[:, None]
        changed = []
        for block, keys, values in zip(self.blocks, cache[::2], cache[1::2], strict=True):
            x, keys, values = block(x, positions, turn, seen, keys, values)
            changed += [keys, values]
        return (self.head(self.norm(x[:, -1])), *changed)


def empty_cache() -> list[Tensor]:
    """Return keys and values of each layer, nothing written."""
    return [torch.zeros(1, HEADS, CACHE, WIDTH // HEADS) for _ in range(2 * LAYERS)]
