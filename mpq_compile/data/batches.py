"""The user's data → batches that fit the network, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpq_compile.data.collate import Collation
from mpq_compile.data.items import as_tensor, inputs_and_labels, labels_tensor
from mpq_compile.data.seeding import seeded
from mpq_compile.data.sources import source_of
from mpq_compile.data.wanted import MAX_BATCH, Reading, Wanted
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch: flat input tensors, and labels (int64 [B]) where the user gave them."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.inputs[0]) if self.inputs[0].dim() else 1


@dataclass(frozen=True, kw_only=True)
class Data:
    """The user's data, read and checked.

    Args:
        batches: What is calibrated on.
        what: Where it comes from, for the plan.
        notes: What the user should know of how it was read.
    """

    batches: tuple[Batch, ...]
    what: str
    notes: tuple[str, ...] = ()


def read_batches(calibration: Any, network: Network) -> tuple[Batch, ...]:
    """Bring the user's data to a tuple of batches; see :func:`read_data`."""
    return read_data(calibration, network).batches


def read_data(
    calibration: Any, network: Network, samples: int | None = None, seed: int = 0
) -> Data:
    """Bring the user's data to batches.

    Args:
        calibration: An iterable of batches, each a tensor or an array, a tuple of the model's
            inputs, such inputs and labels (``(x, y)`` or ``((x1, x2), y)``), or a mapping from
            names to columns. A single tensor or array is one batch. Or what
            :data:`mpq_compile.data.sources.SOURCES` lists: a path, a DataLoader, a data set.
        network: Gives names, shapes and dtypes of the inputs.
        samples: Most samples to take; None for all that are given, or for 256 of a data set or a
            folder of images.
        seed: Which samples are drawn where there are more, and in which order; and the global
            random generators are seeded with it while data is read, so that a DataLoader that
            shuffles yields the same batches each time.

    Raises:
        CalibrationError: No data, a wrong shape or dtype, or a value that is not finite.
    """
    wanted = wanted_by(network, samples, seed)
    pieces: list[Batch] = []
    with seeded(seed):
        reading, items = opened(calibration, wanted)
        for index, item in enumerate(items):
            pieces += _split(_read(item, f"calibration batch {index}", wanted, network), network)
            if samples is not None and _count(pieces) >= samples:
                break
    if not pieces:
        raise CalibrationError(
            "the calibration data is empty",
            expected="at least one batch",
            found="none (an exhausted generator?)",
            remedy="pass a list of batches, or a fresh DataLoader",
        )
    pieces = _first(pieces, samples, network)
    made = items.transform if isinstance(items, Collation) else None
    notes = (*reading.notes, made.how) if made is not None else reading.notes
    return Data(batches=tuple(pieces), what=reading.what, notes=notes)


def opened(calibration: Any, wanted: Wanted) -> tuple[Reading, Iterable[Any]]:
    """Open the user's data; return what is known of it, and its batches as they come.

    Raises:
        CalibrationError: It is of no kind that is understood.
    """
    source = source_of(calibration)
    reading = source.read(calibration, wanted)
    return reading, Collation(reading.items, wanted) if source.single else reading.items


def wanted_by(network: Network, samples: int | None = None, seed: int = 0) -> Wanted:
    """Return what a network wants of a source of data."""
    examples = network.captured.example_inputs
    return Wanted(
        names=network.captured.input_names,
        shapes=tuple(tuple(example.shape) for example in examples),
        dtypes=tuple(str(example.dtype).removeprefix("torch.") for example in examples),
        samples=samples,
        seed=seed,
        fixed=not network.captured.dynamic_batch,
    )


def _count(batches: Sequence[Batch]) -> int:
    return sum(batch.samples for batch in batches)


def _first(pieces: Sequence[Batch], samples: int | None, network: Network) -> list[Batch]:
    """Return at most ``samples`` samples; whole batches, one at least, where they are fixed."""
    if samples is None:
        return list(pieces)
    kept: list[Batch] = []
    left = samples
    for piece in pieces:
        if piece.samples <= left or (not kept and not network.captured.dynamic_batch):
            kept.append(piece)
        elif left > 0 and network.captured.dynamic_batch:
            kept.append(_cut(piece, slice(left)))
        left -= piece.samples
    return kept


def _cut(batch: Batch, span: slice) -> Batch:
    labels = None if batch.labels is None else batch.labels[span]
    return Batch(inputs=tuple(value[span] for value in batch.inputs), labels=labels)


def _read(item: Any, where: str, wanted: Wanted, network: Network) -> Batch:
    examples = network.captured.example_inputs
    values, given = inputs_and_labels(item, wanted, where)
    inputs = [as_tensor(value) for value in values]
    if len(inputs) != len(examples) or not all(isinstance(value, Tensor) for value in inputs):
        raise CalibrationError(
            "a batch does not fit the model's inputs",
            where=where,
            expected=f"{len(examples)} tensors, optionally labels after them",
            found=f"{len(inputs)} values: {', '.join(type(v).__name__ for v in inputs)}",
            remedy="yield tensors or arrays, tuples of inputs, or (inputs, labels)",
        )
    for number, (value, example) in enumerate(zip(inputs, examples, strict=True)):
        _check(value, example, f"{where}, input {number}", network.captured.dynamic_batch)
    labels = labels_tensor(given, where)
    if labels is not None and len(labels) != len(inputs[0]):
        raise CalibrationError(
            "labels do not match the batch",
            where=where,
            expected=f"{len(inputs[0])} labels",
            found=str(len(labels)),
            remedy="give one label for each sample",
        )
    return Batch(inputs=tuple(inputs), labels=labels)


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
        pieces.append(_cut(batch, span))
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


def in_batches(batches: Sequence[Batch], chosen: Tensor) -> tuple[Batch, ...]:
    """Return the chosen samples (int64, by their place in all batches), in batches.

    The network must leave its batch free.
    """
    inputs = [torch.cat(column) for column in zip(*(b.inputs for b in batches), strict=True)]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    whole = torch.cat(labels) if len(labels) == len(batches) else None
    return tuple(
        Batch(
            inputs=tuple(value[part] for value in inputs),
            labels=None if whole is None else whole[part],
        )
        for part in chosen.split(MAX_BATCH)
    )
