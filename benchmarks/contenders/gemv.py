"""One-row linears whose weights come from memory: the task, its contenders, its goals.

A call visits copies of weights and scales, more than any cache holds, float32 in and out. Ours go
through Python twice for each copy (convert the input, multiply); MatMulNBits runs all copies as
one graph, which favours it by a few microseconds a copy. Codes are random: only time counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contenders import Contender
from contenders.goals import Goal
from mpq_compile.types import Candidate

# Output and input features.
SIZES = ((4096, 4096), (11008, 4096))
GROUP = 128
_ROTATION_BYTES = 1 << 30
_QUICK_BYTES = 1 << 24
_OURS = ("w8a8", "w8a16", f"w4a8g{GROUP}", f"w4a8g{GROUP}d", "w4a16", f"w2a8g{GROUP}")
_NBITS = ((4, "fp32", 0), (4, "int8", 4), (8, "int8", 4))


@dataclass(frozen=True)
class GemvTask:
    """Multiply one row by many copies of a matrix.

    Args:
        outputs, inputs: Features.
        threads: Threads of every runtime.
        folder: For logs.
        quick: Rotate over few copies: what is timed is then the cache.
    """

    outputs: int
    inputs: int
    threads: int
    folder: Path
    quick: bool = False

    def copies(self, bits: int) -> int:
        """Return how many matrices of ``bits`` bits exceed the caches."""
        rotation = _QUICK_BYTES if self.quick else _ROTATION_BYTES
        return -(-rotation * 8 // (self.outputs * self.inputs * bits))

    @cached_property
    def example(self) -> Tensor:
        """The row, float32 [1, inputs]."""
        return torch.randn((1, self.inputs), generator=torch.Generator().manual_seed(0))


def random_codes(size: int, dtype: str, copies: int) -> Iterator[np.ndarray]:
    """Yield packed weights, all different: a runtime may share memory between equal ones."""
    generator = np.random.default_rng(0)
    for _ in range(copies):
        yield generator.integers(0, 256, size, np.uint8).view(dtype)


def gemv_contenders() -> list[Contender]:
    """Return ours by candidate, and MatMulNBits with float32 and with int8 activations."""
    return [*map(_ours, _OURS), *(_nbits(*row) for row in _NBITS)]


def _ours(candidate: str) -> Contender:
    return Contender(
        name=f"ours {candidate}",
        precision=f"w{Candidate.parse(candidate).weight_bits}",
        entry="contenders.gemv_ours:prepare",
        ours=True,
        options=(("candidate", candidate),),
    )


def _nbits(bits: int, activations: str, accuracy_level: int) -> Contender:
    return Contender(
        name=f"MatMulNBits w{bits} {activations}",
        precision=f"w{bits}",
        entry="contenders.gemv_nbits:prepare",
        needs=("onnx", "onnxruntime"),
        options=(("bits", bits), ("accuracy_level", accuracy_level)),
    )


def gemv_goals() -> tuple[Goal, ...]:
    """Return what 4 bits are meant to reach: against MatMulNBits, and against our own 8 bits."""
    nbits = tuple(f"MatMulNBits w4 {activations}" for bits, activations, _ in _NBITS if bits == 4)
    goals = ((1.3, nbits), (1.8, ("ours w8a8",)))
    return tuple(
        Goal(ours=f"ours {name}", at_least=at_least, peers=peers)
        for name in _OURS
        if name.startswith("w4a8")
        for at_least, peers in goals
    )
