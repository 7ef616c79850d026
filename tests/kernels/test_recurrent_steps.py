"""Steps of recurrent cells against PyTorch, on every tier that this CPU executes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor

from mpq_compile.kernels import recurrent
from mpq_compile.kernels.elementwise_workload import RecurrentStepWorkload
from mpq_compile.kernels.emit import FORMAT_DTYPE
from mpq_compile.kernels.packing import pack_convert
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.passes import ops
from mpq_compile.quant import reference

THREADS = 2
TIERS = host_tiers()
SHAPES = [(1, 16), (3, 7), (2, 130), (300, 33)]
INFINITE = (float("-inf"), float("inf"))
CODES = (127.0, (-127.0, 128.0), 127)  # scale, bounds, zero point of a u8 state in (−1, 1)
STEPS = 5


@pytest.fixture(params=TIERS, ids=[tier.name for tier in TIERS])
def tier(request: pytest.FixtureRequest) -> Tier:
    return request.param


def drawn(*shape: int, seed: int) -> Tensor:
    """Return products from where gates are open to where they are shut."""
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def workload_of(kind: str, rows: int, hidden: int, **more: Any) -> RecurrentStepWorkload:
    """Return a step that reads the third of five from the products of all."""
    width = hidden * (4 if kind == "lstm" else 3)
    given: dict[str, Any] = {"outer": "each", "carried": True, "outputs": ("fp32",), **more}
    return RecurrentStepWorkload(
        kind=kind,  # type: ignore[arg-type]
        rows=rows,
        hidden=hidden,
        inner_size=rows * STEPS * width,
        inner_stride=STEPS * width,
        **given,
    )


def operands(workload: RecurrentStepWorkload) -> list[Tensor | None]:
    """Return the products of all inputs, those of the state, and the state before."""
    rows, width = workload.rows, workload.gates * workload.hidden
    outer = {"each": (rows, width), "shared": (width,), "none": None}[workload.outer]
    return [
        drawn(rows, STEPS, width, seed=rows),
        None if outer is None else drawn(*outer, seed=1),
        drawn(rows, workload.hidden, seed=2) / 3 if workload.carried else None,
    ]


def run(
    workload: RecurrentStepWorkload, tier: Tier, values: Sequence[Tensor | None]
) -> list[np.ndarray]:
    """Return hidden states as they are stored, and the cell state of an LSTM."""
    function = recurrent.generate(workload, tier, THREADS)
    program = tvm.compile(function, target=tier.target(THREADS))
    records = [
        pack_convert(0, CODES[0], *CODES[1:]) if fmt == "u8" else pack_convert(0, 1.0, INFINITE, 0)
        for fmt in workload.outputs
    ]
    start = np.zeros_like(records[0])
    start[0] = 2 * workload.gates * workload.hidden
    arrays = [value.numpy().reshape(-1) for value in values if value is not None]
    arguments = [tvm.runtime.tensor(a) for a in [*arrays, np.concatenate([start, *records])]]
    formats = [*workload.outputs, *(["fp32"] if workload.kind == "lstm" else [])]
    size = workload.rows * workload.hidden
    outputs = [tvm.runtime.tensor(np.zeros(size, FORMAT_DTYPE[fmt])) for fmt in formats]
    program["main"](*arguments, *outputs)
    return [output.numpy() for output in outputs]


def expected(workload: RecurrentStepWorkload, values: Sequence[Tensor | None]) -> list[Tensor]:
    every, outer, state = values
    assert every is not None
    step = ops.lstm_step if workload.kind == "lstm" else ops.gru_step
    found = step(every[:, 2], outer, state)
    return list(found) if isinstance(found, tuple) else [found]


def assert_close(found: np.ndarray, wanted: Tensor) -> None:
    values = torch.from_numpy(found).reshape(wanted.shape)
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize(
    "kind,outer",
    [("lstm", "each"), ("lstm", "none")] + [("gru", outer) for outer in ("each", "shared", "none")],
)
@pytest.mark.parametrize("rows,hidden", SHAPES)
def test_states_are_pytorchs(
    rows: int, hidden: int, kind: str, outer: str, carried: bool, tier: Tier
) -> None:
    workload = workload_of(kind, rows, hidden, outer=outer, carried=carried)
    values = operands(workload)
    for found, wanted in zip(run(workload, tier, values), expected(workload, values), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("rows,hidden", [(1, 33), (3, 16)])
def test_the_hidden_state_is_stored_in_several_formats(
    rows: int, hidden: int, kind: str, tier: Tier
) -> None:
    """Codes and bf16 are exactly those of the float32 values that are stored beside them."""
    workload = workload_of(kind, rows, hidden, outputs=("fp32", "u8", "bf16"))
    values = operands(workload)
    plain, codes, halves, *_ = run(workload, tier, values)
    assert_close(plain, expected(workload, values)[0])
    exact = torch.from_numpy(plain)
    scale, bounds, zero_point = CODES
    assert torch.equal(
        torch.from_numpy(codes), reference.convert(exact, 0, scale, bounds, zero_point, "u8")
    )
    bits = torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits, exact.bfloat16())


def test_extremes_saturate(tier: Tier) -> None:
    """Gates far from zero are open or shut, and no number overflows."""
    workload = workload_of("lstm", 1, 16, outer="none")
    gates = torch.tensor([-200.0, 200.0, 200.0, 200.0]).repeat_interleave(16)
    cell = torch.full((1, 16), 0.5)
    hidden, after = run(workload, tier, [gates.repeat(1, STEPS, 1), None, cell])
    assert_close(after, torch.full((16,), 0.5))
    assert_close(hidden, torch.full((16,), 0.5).tanh())
