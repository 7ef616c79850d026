"""Random matrix multiplies against the oracle on every tier of this machine; slow.

    pytest -m slow tests/kernels/test_random_sweep.py

``MPQ_SWEEP_CASES`` is the number of cases (400), ``MPQ_SWEEP_SEED`` the first seed (0): case i is
drawn from seed + i alone, so that a failure is repeated with one case.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import matmul_cases as cases
import numpy as np
import pytest

from mpq_compile.kernels import arguments, tiles
from mpq_compile.kernels.geometry import uses_tiles
from mpq_compile.kernels.tier import host_tiers, tier_named
from mpq_compile.kernels.tile_instructions import EmulatedTiles
from mpq_compile.kernels.workload import FEW_ROWS, ConvWorkload, LinearWorkload, Workload

FIRST = int(os.environ.get("MPQ_SWEEP_SEED", "0"))
COUNT = int(os.environ.get("MPQ_SWEEP_CASES", "400"))


def random_workload(rng: np.random.Generator) -> Workload:
    """Draw a small convolution or linear layer with any mix of options."""
    return random_linear(rng) if rng.random() < 0.4 else random_convolution(rng)


def random_formats(rng: np.random.Generator, compute: str) -> dict[str, Any]:
    """Draw compute, output and residual formats."""
    outputs = ["u8", "bf16", "fp32"] if compute == "int8" else ["bf16", "fp32"]
    residual = [None, "u8", "bf16", "fp32"][rng.integers(4)]
    return {"compute": compute, "out": str(rng.choice(outputs)), "residual": residual}


def random_linear(rng: np.random.Generator) -> LinearWorkload:
    """Draw a linear layer: few rows or many, packed weights, scales by groups."""
    compute = str(rng.choice(["int8", "int8", "weight_only", "fp32", "bf16"]))
    few = rng.random() < 0.5
    rows = int(rng.integers(1, FEW_ROWS + 1 if few else 70))
    packed = few and compute in ("int8", "weight_only")
    group = int(rng.integers(1, 70)) if compute == "int8" and rng.random() < 0.3 else None
    inputs = group * int(rng.integers(1, 6)) if group else int(rng.integers(1, 300))
    narrow = compute == "int8" and group is None
    bits = [8, 4, 2] if packed else [8, 4] if narrow else [8]
    return LinearWorkload(
        rows=rows,
        in_features=inputs,
        out_features=int(rng.integers(1, 150)),
        weight_bits=int(rng.choice(bits)),  # type: ignore[arg-type]
        group_size=group,
        row_scales=compute == "int8" and rng.random() < 0.3,
        **random_formats(rng, compute),
    )


def random_convolution(rng: np.random.Generator) -> ConvWorkload:
    """Draw a convolution whose output is not empty."""
    compute = str(rng.choice(["int8", "int8", "fp32", "bf16"]))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    channels = groups * int(rng.integers(1, 40))
    outputs = channels if rng.random() < 0.2 else groups * int(rng.integers(1, 50))
    if outputs == channels and rng.random() < 0.7:
        groups = channels
    while True:
        workload = ConvWorkload(
            batch=int(rng.integers(1, 3)),
            height=int(rng.integers(3, 14)),
            width=int(rng.integers(3, 30)),
            in_channels=channels,
            out_channels=outputs,
            kernel=tuple(int(k) for k in rng.integers(1, 8 if rng.random() < 0.2 else 5, 2)),
            stride=tuple(int(s) for s in rng.integers(1, 4, 2)),
            padding=tuple(int(p) for p in rng.integers(-1, 4, 4)),
            dilation=tuple(int(d) for d in rng.integers(1, 3, 2)),
            groups=groups,
            input_dilation=tuple(int(d) for d in rng.choice([1, 1, 2], 2)),
            weight_bits=4 if compute == "int8" and rng.random() < 0.5 else 8,
            **random_formats(rng, compute),
        )
        if min(workload.out_height, workload.out_width) > 0:
            return workload


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_random_workloads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = random_workload(np.random.default_rng(seed))
    for tier in host_tiers():
        cases.assert_matches(workload, tier, seed=seed)
    amx = tier_named("amx")
    if uses_tiles(workload, amx):
        emulated = partial(tiles.generate, unit=EmulatedTiles)
        options = {"generate": emulated, "target": cases.PLAIN_TARGET}
        # The plain target lacks the instruction that rounds to bf16.
        monkeypatch.setattr(arguments, "BF16_OF_F32", "")
        cases.assert_matches(workload, amx, seed=seed, **options)


def test_the_draw_reaches_every_kind_of_kernel() -> None:
    """Without running them: what the sweep would meet."""
    drawn = [random_workload(np.random.default_rng(seed)) for seed in range(400)]
    convolutions = [w for w in drawn if isinstance(w, ConvWorkload)]
    linears = [w for w in drawn if isinstance(w, LinearWorkload)]
    assert {w.compute for w in convolutions} == {"int8", "fp32", "bf16"}
    assert any(w.groups == w.in_channels == w.out_channels > 1 for w in convolutions)
    assert any(1 < w.groups < w.in_channels for w in convolutions)
    assert any(w.input_dilation != (1, 1) for w in convolutions)
    assert any(max(w.kernel) >= 5 for w in convolutions)
    assert {(w.compute, w.weight_bits) for w in linears} >= {
        (compute, bits) for compute in ("int8", "weight_only") for bits in (8, 4, 2)
    }
    assert any(w.row_scales and w.group_size for w in linears)
    assert any(w.group_size for w in linears) and any(w.rows > FEW_ROWS for w in linears)
    assert any(uses_tiles(w, tier_named("amx")) for w in drawn)
