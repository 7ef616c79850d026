"""Predicted bytes are those that are stored, and at least those where formats are mixed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.commands.compile import artifact_outcome

X = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Curved(nn.Module):
    """Functions that are tables between integer sites, and a convolution whose bias is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.inner, self.plain = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 12, 1, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.conv(x)))
        return self.head(F.relu(self.plain(F.silu(self.inner(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Curved().eval()


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w3a8", "fp32", "bf16"])
def test_a_uniform_assignment_takes_what_was_said(name: str, model: nn.Module) -> None:
    network = mpq.assign(model, X[:1], [X], name, tuned=False)
    assert network.size_bytes == network.plan.predicted.size_bytes


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_mixed_one_takes_no_more(place: int, model: nn.Module) -> None:
    sites = ["conv:conv2d#0", "inner:conv2d#0", "plain:conv2d#0", "head:linear#0"]
    names = {site: "fp32" if i == place else "w4a8" for i, site in enumerate(sites)}
    network = mpq.assign(model, X[:1], [X], names, tuned=False)
    assert 0 <= network.plan.predicted.size_bytes - network.size_bytes <= 2 * 256


@pytest.mark.parametrize("size_mb", [0.0014, 0.0015])
def test_a_budget_on_the_size_is_one_on_what_is_stored(size_mb: float, model: nn.Module) -> None:
    choices = ["w8a8", "w4a8"]
    network = mpq.compile(
        model, X[:1], [X], budget={"size_mb": size_mb}, candidates=choices, verify=False
    )
    assert (
        network.size_bytes
        <= 1e6 * size_mb
        < mpq.assign(model, X[:1], [X], "w8a8", tuned=False).size_bytes
    )
    assert artifact_outcome(network, network.folder).exit_code == 0


def test_a_network_above_its_size_budget_is_no_success(model: nn.Module) -> None:
    network = mpq.assign(model, X[:1], [X], "w8a8", tuned=False)
    network.plan.budget["size_mb"] = (network.size_bytes - 1) / 1e6
    assert artifact_outcome(network, network.folder).exit_code == 1


class Shared(nn.Module):
    """A layer that is used three times, and an embedding whose rows are the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.rows.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] → [B, T, 40]."""
        x = self.rows(tokens)
        for _ in range(3):
            x = F.relu(self.layer(x))
        return self.head(x)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["w8a8", "w4a8", "bf16", "fp32"])
def test_a_weight_that_several_sites_read_is_stored_once(name: str, rounding: str) -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    tokens = torch.randint(0, 40, (80, 6))
    network = mpq.assign(model, tokens[:1], [tokens], name, tuned=False, rounding=rounding)
    assert network.size_bytes == network.plan.predicted.size_bytes
    bits = {"w8a8": 8, "w4a8": 4, "bf16": 16, "fp32": 32}[name]
    weights = (40 * 16 + 16 * 16) * bits // 8
    small = 4 * (3 * 16 + 40 + 3 * 16 + 40)  # scales, and biases of the three
    assert weights <= network.size_bytes <= weights + small
    tolerance = 0.0 if name.startswith("w") else 0.02
    found, expected = network(tokens[:3]), network.reference(tokens[:3])
    assert torch.allclose(found, expected, rtol=0, atol=tolerance)


class Masked(nn.Module):
    """Attention behind a mask of truth values that the model holds; two layers read it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("seen", torch.ones(1, 1, 6, 6, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 16] → the same."""
        for layer in (self.first, self.second):
            heads = layer(x).unflatten(-1, (2, 8)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(heads, heads, heads, attn_mask=self.seen)
            x = x + mixed.transpose(1, 2).flatten(2)
        return x


@pytest.mark.parametrize("name", ["w8a8", "fp32"])
def test_what_stands_for_a_mask_is_counted(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    network = mpq.assign(Masked().eval(), x[:1], [x], name, tuned=False)
    assert network.size_bytes == network.plan.predicted.size_bytes


class Recurring(nn.Module):
    """A 1-D convolution that is used three times, and one behind two norms, each folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv1d(8, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.BatchNorm1d(8),
        )
        self.normed = nn.Conv1d(8, 8, 3, padding=1, bias=False)
        for norm in (self.first, self.second):
            nn.init.uniform_(norm.weight, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8, L] → the same."""
        for _ in range(3):
            x = F.relu(self.conv(x))
        x = F.relu(self.first(self.normed(x)))
        return self.second(self.normed(x))


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "fp32"])
def test_weights_are_shared_where_they_are_equal(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 8, 12)
    network = mpq.assign(Recurring().eval(), x[:1], [x], name, tuned=False)
    assert network.size_bytes == network.plan.predicted.size_bytes
    bits = {"w8a8": 8, "w4a8": 4, "fp32": 32}[name]
    weights = 3 * 8 * 8 * 3 * bits // 8  # of one layer that is used again, and of two
    assert weights <= network.size_bytes <= weights + 2 * 5 * 8 * 4
