"""Calibration batches, cut so that what a metric keeps of each fits the memory it may use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some samples in a row; ``start`` is the number of the first among all that are used."""

    start: int
    batch: Batch

    @property
    def size(self) -> int:
        """Number of samples."""
        return size_of(self.batch)


def size_of(batch: Batch) -> int:
    """Return the number of samples of a batch."""
    return len(batch.inputs[0]) if batch.inputs[0].dim() else 1


def cut(
    batches: Sequence[Batch], network: Network, samples: int, sample_bytes: float, memory_mb: float
) -> tuple[Slice, ...]:
    """Return the first ``samples`` samples in slices of at most ``memory_mb``.

    A network whose batch is fixed takes whole batches, whatever they need.

    Args:
        batches: The calibration data.
        network: The prepared network.
        samples: Samples that are used, at most.
        sample_bytes: What the metric keeps of one sample.
        memory_mb: What it may keep at once, 10⁶ bytes.
    """
    most = max(1, int(memory_mb * 1e6 / max(sample_bytes, 1.0)))
    slices: list[Slice] = []
    seen = 0
    for batch in batches:
        if seen >= samples:
            break
        for piece in _pieces(batch, network, most, samples - seen):
            slices.append(Slice(start=seen, batch=piece))
            seen += size_of(piece)
    return tuple(slices)


def _pieces(batch: Batch, network: Network, most: int, count: int) -> Iterator[Batch]:
    """Yield at most ``count`` samples of a batch, ``most`` at a time."""
    if not network.captured.dynamic_batch or not batch.inputs[0].dim():
        yield batch
        return
    end = min(count, size_of(batch))
    for start in range(0, end, most):
        span = slice(start, min(start + most, end))
        labels = None if batch.labels is None else batch.labels[span]
        yield Batch(inputs=tuple(value[span] for value in batch.inputs), labels=labels)


def value_bytes(network: Network) -> float:
    """Return the bytes of every float32 value that the graph computes for one sample."""
    parameters = {node.name for node in network.module.graph.nodes if node.op == "get_attr"}
    shapes = (s for name, (s, _) in network.shapes.items() if name not in parameters)
    return 4.0 * sum(math.prod(shape) for shape in shapes) / example_size(network)


def site_bytes(network: Network) -> float:
    """Return the bytes of all sites' outputs for one sample."""
    total = sum(math.prod(site.output_shape) for site in network.sites)
    return 4.0 * total / example_size(network)


def example_size(network: Network) -> int:
    """Return the number of samples of the example inputs."""
    first = network.captured.example_inputs[0]
    return max(1, len(first)) if first.dim() else 1


def per_sample(value: Tensor, size: int) -> Tensor | None:
    """Return [B, elements] of a tensor whose rows belong to samples in order, else None."""
    rows = value.shape[0] if value.dim() else 1
    return None if rows % size or not rows else value.reshape(size, -1)


def draws(seed: int, part: Slice, shape: Sequence[int]) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64 [B, ...shape].

    Each sample has a generator of its own: slices may be cut in any way and taken in any order.
    """
    numbers = range(part.start, part.start + part.size)
    return np.stack([np.random.default_rng([seed, n]).random(tuple(shape)) for n in numbers])
