"""Forms that models are written with besides layers, each between two layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


class Written(nn.Module):
    """A function between two linear layers: [B, 6, 8] → whatever it gives."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def _states(x: Tensor) -> Tensor:
    state, decay = x.new_zeros(x.shape[0], 8), torch.ones(2, x.shape[0], 8)
    for step in range(3):
        state = state * 0.5 * decay[1] + x[:, step]
    return state + torch.full_like(state, 0.25)


def _last_tokens(x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), x[:, :, 0].argmax(-1)]


def _last_tokens_from_the_end(x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), x[:, :, 0].argmax(-1) - 6]


def _turned_view(x: Tensor) -> Tensor:
    turned = x.transpose(1, 2).contiguous().view(x.shape[0], 4, 2, 6)
    return torch.ops.aten._unsafe_view(turned, [x.shape[0], 6, 8]) + x


def _weighed(x: Tensor) -> Tensor:
    bias = torch.arange(6.0).repeat(x.shape[0], 6, 1)
    return torch.baddbmm(bias, x, x.transpose(1, 2), beta=0.5, alpha=0.1) @ x


FORMS = {
    "filled": _states,
    "one_for_each_sample": _last_tokens,
    "counted_from_the_end": _last_tokens_from_the_end,
    "views": _turned_view,
    "added_products": _weighed,
    "copies_of_the_batch": lambda x: torch.arange(8.0).repeat(x.shape[0], 6, 1) * x,
    "copies_of_rows": lambda x: torch.ones(2, 6, 8).cumsum(1).repeat(x.shape[0], 1, 1)[:1] + x,
    "tiles": lambda x: x.tile(2, 1)[:, :6] + torch.ones(8).tile(6, 1),
    "nothing_joined": lambda x: torch.cat([x[..., :8], x[..., 8:]], -1) * 2,
    "chosen_by_mask": lambda x: x[:, torch.arange(6) % 2 == 0] + x.narrow(1, 2, 3).narrow(1, -3, 3),
    "on_a_diagonal": lambda x: x @ torch.eye(8, 9)[:, :8],
    "one_joined": lambda x: torch.concat([x * 2], 1),
    "nothing_beside": lambda x: torch.cat([x[..., :3], x[..., 8:], x[..., 3:]], -1),
    "negative_positions": lambda x: x[:, [-1, 0, -2]],
    "grid": lambda x: x + torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0)))[0],
    "turned": lambda x: torch.einsum("bij->jbi", x).permute(1, 2, 0),
    "summed": lambda x: torch.einsum("bij->bj", x),
    "numbers": lambda x: x * (1.0 - (x[:, :, :1] > 0).long()) / (torch.arange(8) + 2),
    "three_factors": lambda x: torch.einsum("bij,jk,bik->bij", x, torch.ones(8, 5), x[..., :5]),
    "over_a_line": lambda x: torch.linspace(0, 1, 8) * x,
    "windows": lambda x: x.unfold(1, 3, 1).sum(1).mT + x.unfold(1, 2, 2).sum((1, 3))[:, None, :],
    "long_windows": lambda x: x.unfold(2, 6, 2).amax(2) @ torch.ones(6, 8),
    "pairs": lambda x: (
        torch.einsum("bij,bkj->bik", x, x)[:, [0, 1, 5], [3, -2, 0], None] * x[:, :3]
    ),
    "greatest": lambda x: x - x.logsumexp(-1, keepdim=True) + x.logsumexp((1, 2))[:, None, None],
    "between": lambda x: torch.lerp(x, x.flip(1), 0.25).addcdiv(x, x * x + 1, value=0.5),
    "top": lambda x: x * (x >= x.topk(3)[0][..., -1:]) + x.sort(descending=True)[0],
    "varying": lambda x: torch.cat([x.mean(1), x.std(1)], 1).view(-1, 2, 8),
    "remainders": lambda x: x + (x.argmax(-1) * 31 % 5 // 2).unsqueeze(-1),
}


class Pictured(nn.Module):
    """A function of an image between two convolutions."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.LazyConv2d(5, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def _sampled(mode: str, padding: str, corners: bool):
    def sample(x: Tensor) -> Tensor:
        turn = torch.tensor([[0.9, 0.3, 0.1], [-0.2, 1.2, -0.3]]) + x.mean((1, 2, 3))[:, None, None]
        grid = F.affine_grid(turn, [x.shape[0], 4, 5, 7], align_corners=corners)
        return F.grid_sample(x, grid, mode, padding, corners)

    return sample


IMAGES = {
    "bilinear": _sampled("bilinear", "zeros", False),
    "bilinear_corners": _sampled("bilinear", "border", True),
    "nearest": _sampled("nearest", "zeros", False),
    "patches": lambda x: F.unfold(x, 2, stride=2).unflatten(1, (4, 4)),
    "patches_sewn": lambda x: F.fold(
        F.unfold(x, (3, 2), stride=(3, 2)) * 2, (6, 8), (3, 2), stride=(3, 2)
    ),
    "overlapping": lambda x: F.unfold(x, 3, dilation=2, padding=1, stride=2).unflatten(1, (4, 9)),
    "norm_without_weights": lambda x: F.instance_norm(F.group_norm(x, 2)),
    "norm_without_bias": lambda x: F.group_norm(x, 2, torch.arange(4.0) + 1),
}


class Bags(nn.Module):
    """Bags of rows, and layers of two inputs: [B, 5] twice → [B, 3]."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6, mode=mode)
        self.both = nn.Bilinear(6, 6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = self.bag(a), self.bag(b)
        near = F.pairwise_distance(first, second)[:, None]
        return self.both(first, second) + near + torch.cdist(first[:, None], second[:, None])[:, 0]
