"""Steps of recurrent layers against PyTorch, on every tier that this CPU executes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor

from mpq_compile.kernels import recurrent
from mpq_compile.kernels.attention_workload import Layout
from mpq_compile.kernels.elementwise_workload import GruStepWorkload, LstmStepWorkload
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.passes import ops

THREADS = 2
TIERS = host_tiers()
SHAPES = [(1, 1), (1, 16), (1, 33), (3, 7), (2, 128), (300, 130)]


@pytest.fixture(params=TIERS, ids=[tier.name for tier in TIERS])
def tier(request: pytest.FixtureRequest) -> Tier:
    return request.param


def drawn(*shape: int, seed: int) -> Tensor:
    """Return products from where gates are open to where they are shut."""
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(function: object, tier: Tier, operands: Sequence[Tensor], results: int, size: int):
    program = tvm.compile(function, target=tier.target(THREADS))
    arrays = [tvm.runtime.tensor(value.numpy().reshape(-1)) for value in operands]
    outputs = [tvm.runtime.tensor(np.zeros(size, np.float32)) for _ in range(results)]
    program["main"](*arrays, *outputs)
    return [torch.from_numpy(output.numpy()) for output in outputs]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("rows,hidden", SHAPES)
def test_a_step_of_an_lstm(rows: int, hidden: int, carried: bool, tier: Tier) -> None:
    gates, cell = drawn(rows, 4 * hidden, seed=rows), drawn(rows, hidden, seed=hidden)
    workload = LstmStepWorkload(rows=rows, hidden=hidden, carried=carried)
    operands = [gates, cell] if carried else [gates]
    found = run(recurrent.lstm(workload, tier, THREADS), tier, operands, 2, rows * hidden)
    expected = ops.lstm_step(gates, cell if carried else None)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("outer", ["each", "shared", "none"])
@pytest.mark.parametrize("rows,hidden", SHAPES)
def test_a_step_of_a_gru(rows: int, hidden: int, outer: str, carried: bool, tier: Tier) -> None:
    width, steps = 3 * hidden, 5
    # The products of all steps, of which the kernel reads one.
    every = drawn(rows, steps, width, seed=rows)
    layout = Layout(size=every.numel(), strides=(0, 0, steps * width), offset=2 * width)
    products = {"each": drawn(rows, width, seed=1), "shared": drawn(width, seed=1), "none": None}
    state = drawn(rows, hidden, seed=2) if carried else None
    workload = GruStepWorkload(
        rows=rows,
        hidden=hidden,
        inner=layout,
        outer=outer,  # type: ignore[arg-type]
        carried=carried,
    )
    operands = [value for value in (every, products[outer], state) if value is not None]
    (found,) = run(recurrent.gru(workload, tier, THREADS), tier, operands, 1, rows * hidden)
    assert_close(found, ops.gru_step(every[:, 2], products[outer], state))


def test_extremes_saturate(tier: Tier) -> None:
    """Gates far from zero are open or shut, and no number overflows."""
    gates = torch.tensor([[-200.0, 200.0, 200.0, 200.0]]).repeat_interleave(16, 1)
    cell = torch.full((1, 16), 0.5)
    workload = LstmStepWorkload(rows=1, hidden=16, carried=True)
    hidden, after = run(recurrent.lstm(workload, tier, THREADS), tier, [gates, cell], 2, 16)
    assert_close(after, torch.full((16,), 0.5))
    assert_close(hidden, torch.tanh(after))
