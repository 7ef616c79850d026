"""What models are written with besides layers: fills, repeats, look-ups, windows, layouts."""

from __future__ import annotations

import pytest
import torch
from form_nets import FORMS, IMAGES, Bags, Pictured, Written, seeded
from graphs import assert_same, calls, prepared
from torch import Tensor, nn

from mpq_compile.errors import UnsupportedOpError
from mpq_compile.passes.kinds import Kind, kinds


@pytest.mark.parametrize("name", FORMS)
def test_forms_keep_their_values(name: str) -> None:
    net, x = Written(FORMS[name]).eval(), seeded(3, 6, 8)
    network = prepared(net, x[:1])
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert network.captured.dynamic_batch
    assert_same(net, network.module, [x])


@pytest.mark.parametrize("name", IMAGES)
def test_forms_of_images_keep_their_values(name: str) -> None:
    net, x = Pictured(IMAGES[name]).eval(), seeded(2, 3, 6, 8)
    net(x)
    network = prepared(net, x[:1])
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert network.captured.dynamic_batch
    assert_same(net, network.module, [x])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_and_layers_of_two_inputs(mode: str) -> None:
    net = Bags(mode).eval()
    rows = [
        torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(n)) for n in (1, 2)
    ]
    network = prepared(net, *(value[:1] for value in rows))
    assert Kind.UNSUPPORTED not in kinds(network).values()
    assert network.captured.dynamic_batch
    assert calls(network.module)["site_embedding"] == 2
    assert_same(net, network.module, rows)


def test_a_row_that_is_hidden_as_a_whole_has_no_sum() -> None:
    seen = torch.tensor([0.0, float("-inf")])
    net = Written(lambda x: (x[..., :2, None] + seen).logsumexp(2).exp()[..., :1] * x).eval()
    assert_same(net, prepared(net, seeded(1, 6, 8)).module, [seeded(2, 6, 8)])
    hidden = nn.Sequential(nn.Linear(8, 8)).eval()
    net = Written(lambda x: (x - float("inf")).logsumexp(-1).exp()[..., None] + hidden(x)).eval()
    assert_same(net, prepared(net, seeded(1, 6, 8)).module, [seeded(2, 6, 8)])


def test_places_that_the_first_sample_tells_bind_the_batch() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 4)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.first(x)[:, ids[0]]

    network = prepared(First(), seeded(1, 6, 8), torch.tensor([[1, 4, 0]]))
    assert not network.captured.dynamic_batch


@pytest.mark.parametrize("causal", [True, False])
def test_a_transformer_with_a_mask_that_is_made_inside(causal: bool) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
            return self.layers(x, y, tgt_mask=mask if causal else mask.T)

    net, values = Decoder().eval(), [seeded(3, 6, 8), seeded(3, 5, 8)]
    network = prepared(net, *(value[:1] for value in values))
    assert network.captured.dynamic_batch
    assert_same(net, network.module, values)


def test_masks_that_are_added_or_chosen_are_one() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
            self.near = nn.Parameter(seeded(6, 6))

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).mT / 8**0.5 + self.near
            causal = torch.ones(6, 6, dtype=torch.bool).tril()
            scores = torch.where(causal, scores, torch.finfo(torch.float32).min)
            return (scores + seen).softmax(-1) @ self.v(x)

    net, x = Scores().eval(), seeded(3, 6, 8)
    seen = torch.zeros(3, 1, 6).masked_fill(torch.rand(3, 1, 6) > 0.8, -1e30)
    network = prepared(net, x[:1], seen[:1])
    assert calls(network.module)["scaled_dot_product_attention"] == 1
    assert_same(net, network.module, [x, seen])


def test_a_mask_may_have_one_value_for_each_key() -> None:
    bias = seeded(6)
    net = Written(lambda x: (x @ x.mT + bias).softmax(-1) @ x).eval()
    network = prepared(net, seeded(1, 6, 8))
    assert calls(network.module)["scaled_dot_product_attention"] == 1
    assert_same(net, network.module, [seeded(3, 6, 8)])


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


def test_positions_that_data_tell_may_count_from_the_end() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.last = nn.Parameter(seeded(7, 8)), nn.Linear(8, 4)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.last(self.rows[ids] + x[:, ids[0]])

    net, x, ids = Rows().eval(), seeded(1, 7, 8), torch.tensor([[-1, 6, -7]])
    assert_same(net, prepared(net, x, ids).module, [x, ids])


def test_an_einsum_that_repeats_values_is_refused() -> None:
    scale = torch.rand(1, 8)
    net = Written(lambda x: torch.einsum("bij,ij->bij", x, scale)).eval()
    with pytest.raises(UnsupportedOpError, match="einsum"):
        kinds(prepared(net, seeded(1, 6, 8)))


def test_bags_of_different_sizes_are_refused() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.last = nn.EmbeddingBag(20, 6), nn.Linear(6, 3)
            self.register_buffer("offsets", torch.tensor([0, 2, 4]))

        def forward(self, rows: Tensor) -> Tensor:
            return self.last(self.bag(rows, self.offsets))

    with pytest.raises(UnsupportedOpError, match="embedding_bag"):
        kinds(prepared(Uneven(), torch.arange(12)))


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
