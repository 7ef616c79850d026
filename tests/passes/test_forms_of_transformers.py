"""What Transformers' models are written with, besides layers: fills, repeats, look-ups, layouts."""

from __future__ import annotations

import pytest
import torch
from graphs import assert_same, calls, prepared
from torch import Tensor, nn

from mpq_compile.passes.kinds import Kind, kinds


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
    "nothing_beside": lambda x: torch.cat([x[..., :3], x[..., 8:], x[..., 3:]], -1),
    "negative_positions": lambda x: x[:, [-1, 0, -2]],
    "grid": lambda x: x + torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(8.0)))[0],
    "turned": lambda x: torch.einsum("bij->jbi", x).permute(1, 2, 0),
    "summed": lambda x: torch.einsum("bij->bj", x),
    "numbers": lambda x: x * (1.0 - (x[:, :, :1] > 0).long()) / (torch.arange(8) + 2),
    "remainders": lambda x: x + (x.argmax(-1) * 31 % 5 // 2).unsqueeze(-1),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_keep_their_values(name: str) -> None:
    net, x = Written(FORMS[name]).eval(), seeded(3, 6, 8)
    network = prepared(net, x[:1])
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert network.captured.dynamic_batch
    assert_same(net, network.module, [x])


def test_rows_that_data_choose_are_an_embedding() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(seeded(7, 8))
            self.last = nn.Linear(8, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.rows[ids])

    net, ids = Positions().eval(), torch.tensor([[1, 6, 2], [0, 3, 3]])
    network = prepared(net, ids[:1])
    assert calls(network.module)["site_embedding"] == 1
    assert_same(net, network.module, [ids])


def test_a_table_of_images_is_chosen_from() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 4)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.first(x)[:, ids[0]]

    net, x, ids = Chosen().eval(), seeded(1, 6, 8), torch.tensor([[[1, 4], [0, 3]]])
    assert_same(net, prepared(net, x, ids).module, [x, ids])


def test_outputs_that_pair_samples_bind_the_batch() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return y @ y.t()

    network = prepared(Pairs(), seeded(2, 8))
    assert not network.captured.dynamic_batch
