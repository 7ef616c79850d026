"""Graph and batches → the range of every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import Histogram

MAX_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch: flat input tensors, and labels (int64 [B]) where the user gave them."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None


def read_batches(calibration: Any, network: Network) -> tuple[Batch, ...]:
    """Bring the user's data to a tuple of batches.

    Args:
        calibration: An iterable of batches, each a tensor, a tuple of the model's inputs, or
            such inputs and labels: ``(x, y)`` or ``((x1, x2), y)``. A single tensor is one batch.
        network: Gives number, shapes and dtypes of the inputs.

    Raises:
        CalibrationError: No data, a wrong shape or dtype, or a value that is not finite.
    """
    if calibration is None or isinstance(calibration, (str, bytes, dict)):
        raise CalibrationError(
            "no calibration data",
            expected="an iterable of input batches",
            found=type(calibration).__name__,
            remedy="pass a few dozen representative inputs, e.g. [x1, x2, ...]",
        )
    items = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    batches = [b for i, item in enumerate(items) for b in _split(_read(item, i, network), network)]
    if not batches:
        raise CalibrationError(
            "the calibration data is empty",
            expected="at least one batch",
            found="none (an exhausted generator?)",
            remedy="pass a list of batches, or a fresh DataLoader",
        )
    return tuple(batches)


def _read(item: Any, index: int, network: Network) -> Batch:
    examples = network.captured.example_inputs
    inputs, labels = _inputs_and_labels(item, len(examples))
    where = f"calibration batch {index}"
    if len(inputs) != len(examples) or not all(isinstance(value, Tensor) for value in inputs):
        raise CalibrationError(
            "a batch does not fit the model's inputs",
            where=where,
            expected=f"{len(examples)} tensors, optionally labels after them",
            found=f"{len(inputs)} values: {', '.join(type(v).__name__ for v in inputs)}",
            remedy="yield tensors, tuples of inputs, or (inputs, labels)",
        )
    for number, (value, example) in enumerate(zip(inputs, examples, strict=True)):
        _check(value, example, f"{where}, input {number}", network.captured.dynamic_batch)
    if labels is not None and len(labels) != len(inputs[0]):
        raise CalibrationError(
            "labels do not match the batch",
            where=where,
            expected=f"{len(inputs[0])} labels",
            found=str(len(labels)),
            remedy="give one label for each sample",
        )
    return Batch(inputs=tuple(inputs), labels=labels)


def _inputs_and_labels(item: Any, count: int) -> tuple[Sequence[Any], Tensor | None]:
    if not isinstance(item, (tuple, list)):
        return (item,), None
    if len(item) == 2 and isinstance(item[0], (tuple, list)):
        return tuple(item[0]), torch.as_tensor(item[1])
    if len(item) == count + 1:
        return tuple(item[:-1]), torch.as_tensor(item[-1])
    return tuple(item), None


def _check(value: Tensor, example: Tensor, where: str, dynamic: bool) -> None:
    multiple = value.dim() and len(value) and len(value) % max(len(example), 1) == 0
    if value.shape[1:] != example.shape[1:] or not (multiple if not dynamic else len(value)):
        raise CalibrationError(
            "wrong input shape",
            where=where,
            expected=f"[batch, {', '.join(map(str, example.shape[1:]))}]",
            found=str(list(value.shape)),
            remedy="shape the batch like the example inputs (batch first)",
        )
    if value.dtype != example.dtype:
        raise CalibrationError(
            "wrong input dtype",
            where=where,
            expected=str(example.dtype),
            found=str(value.dtype),
            remedy=f"convert the batch to {example.dtype}",
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise CalibrationError(
            "the calibration data is not finite",
            where=where,
            expected="finite numbers",
            found=f"{bad} NaN or infinite values",
            remedy="remove or repair these samples",
        )


def _split(batch: Batch, network: Network) -> list[Batch]:
    """Cut into pieces of the example's batch, or of at most ``MAX_BATCH`` where it is free."""
    if not batch.inputs[0].dim():
        return [batch]
    captured = network.captured
    if not captured.dynamic_batch:
        return _fixed_pieces(batch, [len(example) for example in captured.example_inputs])
    size = MAX_BATCH
    pieces = []
    for start in range(0, len(batch.inputs[0]), size):
        span = slice(start, start + size)
        labels = None if batch.labels is None else batch.labels[span]
        pieces.append(Batch(inputs=tuple(v[span] for v in batch.inputs), labels=labels))
    return pieces


def _fixed_pieces(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Cut into batches of exactly the example's lengths."""
    counts = {len(v) // size for v, size in zip(batch.inputs, sizes, strict=True)}
    if len(counts) != 1:
        raise CalibrationError(
            "the inputs of a batch have different numbers of samples",
            expected=f"multiples of {', '.join(map(str, sizes))}, the same for each input",
            found=", ".join(str(len(value)) for value in batch.inputs),
            remedy="pass batches of the example's sizes: this model fixes its batch",
        )
    pieces = []
    for i in range(counts.pop()):
        inputs = zip(batch.inputs, sizes, strict=True)
        labels = batch.labels
        if labels is not None:
            labels = labels[i * sizes[0] : (i + 1) * sizes[0]]
        cut = tuple(value[i * size : (i + 1) * size] for value, size in inputs)
        pieces.append(Batch(inputs=cut, labels=labels))
    return pieces


def calibrate(network: Network, batches: Sequence[Batch], observer: str = "mse") -> Calibration:
    """Observe every float tensor of the prepared graph over all batches.

    Raises:
        CalibrationError: The output of a site is not finite.
    """
    histograms: dict[str, Histogram] = {}
    site_of = network.site_of

    def observe(node, value) -> None:
        seen = node.op == "get_attr" and node.name in histograms  # constants are seen once
        if node.name in site_of and not value.isfinite().all():
            raise CalibrationError(
                "the output of a site is not finite",
                where=site_of[node.name].id,
                expected="finite numbers on the calibration data",
                found=f"{int((~value.isfinite()).sum())} NaN or infinite values",
                remedy="look for samples, or for a layer before it, that overflow in float",
            )
        if isinstance(value, Tensor) and value.is_floating_point() and not seen:
            histograms.setdefault(node.name, Histogram()).observe(value)

    recorder = ValueRecorder(network.module, observe)
    samples = 0
    with torch.no_grad():
        for batch in track(batches, "calibrate"):
            recorder.run(*batch.inputs)
            samples += len(batch.inputs[0]) if batch.inputs[0].dim() else 1
    return Calibration(histograms=histograms, observer=observer, samples=samples)


def hold_out(
    batches: Sequence[Batch], share: float, network: Network
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Return batches to calibrate on and others to judge by, about ``share`` of the samples.

    Every n-th sample is held out, or every n-th batch where the network fixes its batch; where
    there are too few for that, both are all.
    """
    if share <= 0:
        return tuple(batches), tuple(batches)
    every = max(2, round(1 / share))
    if network.captured.dynamic_batch and all(len(b.inputs[0]) >= every for b in batches):
        parts = [_parted(batch, every) for batch in batches]
        return tuple(kept for kept, _ in parts), tuple(held for _, held in parts)
    held = tuple(batches[every - 1 :: every])
    kept = tuple(b for i, b in enumerate(batches) if i % every != every - 1)
    return (kept, held) if held else (tuple(batches), tuple(batches))


def _parted(batch: Batch, every: int) -> tuple[Batch, Batch]:
    chosen = torch.arange(len(batch.inputs[0])) % every == every - 1

    def part(mask: Tensor) -> Batch:
        labels = None if batch.labels is None else batch.labels[mask]
        return Batch(inputs=tuple(value[mask] for value in batch.inputs), labels=labels)

    return part(~chosen), part(chosen)


def spread(batches: Iterable[Batch], samples: int) -> tuple[Batch, ...]:
    """Return the first batches that hold about ``samples`` samples."""
    chosen: list[Batch] = []
    seen = 0
    for batch in batches:
        if seen >= samples:
            break
        chosen.append(batch)
        seen += len(batch.inputs[0]) if batch.inputs[0].dim() else 1
    return tuple(chosen)
