"""Calibration data → calls of a compiled model like the one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mpq_compile.data.batches import opened
from mpq_compile.data.items import as_tensor, inputs_and_labels, labels_tensor
from mpq_compile.data.seeding import seeded
from mpq_compile.data.wanted import Wanted
from mpq_compile.errors import CalibrationError, MpqError
from mpq_compile.integrations.backend_options import BackendOptions
from mpq_compile.integrations.running_call import RunningCall


def model_calls(
    call: RunningCall, options: BackendOptions
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], Tensor | None]]:
    """Yield arguments, keywords and labels of a call for each calibration batch.

    The tensors of the running call are replaced, in order; what else it was called with stays.

    Raises:
        CalibrationError: The data is empty, or a batch has another number of inputs.
    """
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    wanted = _wanted(call, [leaves[i] for i in places], options)
    left = options.recipe.samples
    with seeded(options.seed):
        for index, item in enumerate(opened(options.calibration, wanted)[1]):
            where = f"calibration batch {index}"
            values, labels = inputs_and_labels(item, wanted, where)
            inputs = [as_tensor(value) for value in values]
            _check(inputs, wanted, where)
            for place, value in zip(places, inputs, strict=True):
                leaves[place] = value
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            yield args, kwargs, labels_tensor(labels, where)
            left = None if left is None else left - len(inputs[0])
            if left is not None and left <= 0:
                return


def run_batch(
    call: RunningCall, args: Sequence[Any], kwargs: Mapping[str, Any], index: int
) -> None:
    """Run a call on a calibration batch.

    Raises:
        CalibrationError: The model raised an error of its own, or one of PyTorch's.
    """
    try:
        call.run(*args, **kwargs)
    except MpqError:
        raise
    except Exception as error:  # whatever the model raises
        given, wanted = (
            ", ".join(
                str(list(v.shape)) for v in pytree.tree_leaves(values) if isinstance(v, Tensor)
            )
            for values in ((args, kwargs), (call.args, call.kwargs))
        )
        raise CalibrationError(
            "the model does not run on a calibration batch",
            where=f"calibration batch {index}",
            expected=f"inputs like those of the first call: {wanted}, of any batch",
            found=f"{given}: {type(error).__name__}: {str(error).strip()[:600]}",
            remedy="give calibration batches of the shapes of the first call",
        ) from error


def _wanted(call: RunningCall, examples: list[Tensor], options: BackendOptions) -> Wanted:
    return Wanted(
        names=_names(call),
        shapes=tuple(tuple(value.shape) for value in examples),
        dtypes=tuple(str(value.dtype).removeprefix("torch.") for value in examples),
        samples=options.recipe.samples,
        seed=options.seed,
    )


def _names(call: RunningCall) -> tuple[str, ...]:
    """Return a name for each tensor of a call: that of its argument, with a number within it."""
    positional = [
        call.parameters[i] if i < len(call.parameters) else f"argument {i}"
        for i in range(len(call.args))
    ]
    named = [*zip(positional, call.args, strict=True), *call.kwargs.items()]
    names = []
    for name, value in named:
        count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
        names += [name] if count == 1 else [f"{name}.{i}" for i in range(count)]
    return tuple(names)


def _check(inputs: list[Any], wanted: Wanted, where: str) -> None:
    fits = len(inputs) == len(wanted.shapes) and all(isinstance(v, Tensor) for v in inputs)
    kinds = [str(value.dtype).removeprefix("torch.") for value in inputs] if fits else []
    if kinds != list(wanted.dtypes):
        raise CalibrationError(
            "a batch does not fit the call",
            where=where,
            expected=f"{len(wanted.shapes)} tensors ({', '.join(wanted.dtypes)}), "
            "optionally labels after them",
            found=", ".join(str(getattr(value, "dtype", type(value).__name__)) for value in inputs),
            remedy="yield what the model is called with",
        )
    floats = [value for value in inputs if value.is_floating_point()]
    if not all(bool(torch.isfinite(value).all()) for value in floats):
        raise CalibrationError(
            "the calibration data is not finite",
            where=where,
            expected="finite numbers",
            found="NaN or infinite values",
            remedy="remove or repair these samples",
        )
