"""Networks take inputs by the names that the model's ``forward`` has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq_compile as mpq

LEFT, RIGHT = torch.randn(2, 64, 6, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """Two inputs that are not treated alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.relu(self.one(left)) - self.two(right)


@pytest.fixture(scope="module")
def network() -> mpq.CompiledNetwork:
    torch.manual_seed(0)
    data = [(LEFT, RIGHT)]
    return mpq.assign(Two().eval(), (LEFT[:1], RIGHT[:1]), data, "w8a8", tuned=False)


def test_names_are_those_of_forward(network: mpq.CompiledNetwork, tmp_path: Path) -> None:
    expected = network(LEFT, RIGHT)
    assert torch.equal(network(right=RIGHT, left=LEFT), expected)
    assert torch.equal(network(LEFT, right=RIGHT), expected)
    loaded = mpq.load(network.save(tmp_path / "saved"))
    found = loaded(right=RIGHT.numpy(), left=LEFT.numpy())
    assert isinstance(found, np.ndarray) and np.array_equal(found, expected.numpy())


@pytest.mark.parametrize(
    ("inputs", "named", "found"),
    [
        ((), {"left": LEFT}, "left"),
        ((), {"left": LEFT, "rigth": RIGHT}, "left, rigth"),
        ((LEFT,), {"left": LEFT}, "left, left"),
        ((LEFT, RIGHT), {"mask": LEFT}, "left, right, mask"),
    ],
)
def test_other_names_are_refused(
    inputs: tuple[Tensor, ...],
    named: dict[str, Tensor],
    found: str,
    network: mpq.CompiledNetwork,
) -> None:
    with pytest.raises(mpq.MpqError) as caught:
        network(*inputs, **named)
    assert (caught.value.expected, caught.value.found) == ("left, right", found)
