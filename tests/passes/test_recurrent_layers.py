"""Recurrent layers become sites and steps; the same values, and weights that are read once."""

from __future__ import annotations

import pytest
import torch
from graphs import assert_same, calls, prepared
from recurrent_nets import Carried, Cells, Recurrent, TimeFirst
from torch import Tensor, nn

from mpq_compile.passes.kinds import kinds


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in shapes]


LAYERS = {
    "lstm": nn.LSTM(12, 8, batch_first=True),
    "stacked": nn.LSTM(12, 8, 3, batch_first=True, bidirectional=True, dropout=0.3),
    "without_bias": nn.LSTM(12, 8, bias=False, bidirectional=True),
    "projected": nn.LSTM(12, 8, 2, proj_size=5, bidirectional=True),
    "gru": nn.GRU(12, 8, 2, batch_first=True, bidirectional=True),
    "gru_without_bias": nn.GRU(12, 8, bias=False),
    "tanh": nn.RNN(12, 8, 2, batch_first=True),
    "relu": nn.RNN(12, 8, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_keep_their_values(name: str) -> None:
    (x,) = inputs((3, 5, 12))
    network = prepared(LAYERS[name], x)
    kinds(network)  # everything has a rule
    assert_same(LAYERS[name], network.module, [x])


@pytest.mark.parametrize("name", ["lstm", "gru", "tanh"])
def test_one_sequence_without_a_batch(name: str) -> None:
    (x,) = inputs((5, 12))
    network = prepared(LAYERS[name], x)
    assert_same(LAYERS[name], network.module, [x])


@pytest.mark.parametrize(
    "model,shapes",
    [
        (Recurrent, ((1, 6, 12),)),
        (Cells, ((1, 4, 12),)),
        (Carried, ((1, 5, 6), (1, 2, 8), (1, 2, 10))),
        (TimeFirst, ((1, 1, 8, 10),)),
    ],
)
def test_networks_keep_their_values(
    model: type[nn.Module], shapes: tuple[tuple[int, ...], ...]
) -> None:
    net, values = model().eval(), inputs(*shapes)
    network = prepared(net, *values)
    kinds(network)
    assert_same(net, network.module, values)


def test_batches_stay_free() -> None:
    net = Recurrent().eval()
    network = prepared(net, *inputs((1, 6, 12)))
    assert network.captured.dynamic_batch
    assert_same(net, network.module, inputs((5, 6, 12)))


def test_steps_share_weight_and_bits() -> None:
    network = prepared(nn.LSTM(12, 8, batch_first=True), *inputs((1, 6, 12)))
    first, *steps = network.sites
    assert first.group == "weight_ih_l0" and first.output_shape == (1, 6, 32)
    # The first hidden state is zero, and so is its product.
    assert [site.group for site in steps] == ["weight_hh_l0"] * 5
    assert set(network.owner_of.values()) == {first.id, steps[0].id}


def test_a_given_state_has_a_product_of_its_own() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(12, 8, batch_first=True)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.gru(x, h)[0]

    model, values = Given().eval(), inputs((1, 6, 12), (1, 1, 8))
    network = prepared(model, *values)
    assert [site.group for site in network.sites[1:]] == ["gru.weight_hh_l0"] * 6
    assert_same(model, network.module, values)


def test_who_reads_the_last_step_needs_no_sequence() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(12, 8, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0][:, -1]

    model, values = Last().eval(), inputs((1, 6, 12))
    network = prepared(model, *values)
    # Both directions side by side, and of the way back the first step alone.
    assert calls(network.module)["cat"] == 1 and calls(network.module)["gru_step"] == 7
    assert_same(model, network.module, values)


def test_a_state_that_is_filled_with_zeros_has_no_product() -> None:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(12, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            zeros = torch.full((1, x.shape[0], 8), 0.0)
            return self.lstm(x, (zeros, zeros))[0]

    model, values = Filled().eval(), inputs((1, 6, 12))
    network = prepared(model, *values)
    assert network.captured.dynamic_batch and len(network.sites) == 6
    assert_same(model, network.module, inputs((3, 6, 12)))
