"""``torch.export`` as it is called here: quietly, and with errors that say what to do."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules import transformer

from mpq_compile.errors import CaptureError, MpqError

# How torch.export says that an output is of a class that it cannot take apart.
_ODD_OUTPUT = re.compile(r"Found <class '([^']+)'> in output, which is not a known type")


def export(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> ExportedProgram:
    """Trace a model; ``shapes`` are the dynamic ones as ``torch.export`` takes them, or None.

    Raises:
        CaptureError: The model cannot be traced, or returns something else than tensors.
    """
    try:
        with torch.no_grad(), _without_traces(), _masks_as_given(), warnings.catch_warnings():
            # Recurrent layers assign the list of their weights while they are traced.
            warnings.filterwarnings("ignore", r"(?s)The tensor attributes? .*_flat_weights\[")
            return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except MpqError:
        raise  # an imported network says itself what it cannot do
    except Exception as error:  # export raises whatever the model raises
        odd = _ODD_OUTPUT.search(str(error))
        if odd is not None:
            raise no_tensors(odd[1].rpartition(".")[2], type(model).__name__) from error
        raise CaptureError(
            "torch.export cannot trace the model with these inputs",
            where=type(model).__name__,
            expected="a forward without data-dependent Python control flow",
            found=f"{type(error).__name__}: {str(error).strip()[:600]}",
            remedy=_remedy(error),
        ) from error


def _remedy(error: BaseException) -> str:
    """Return what to do about a model that cannot be traced."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Recurrent layers call what they are given so where sequences are packed.
    if any(frame.f_locals.get("batch_sizes") is not None for frame in frames):
        return (
            "run recurrent layers over the padded sequence, and take the last step of each sample "
            "by torch.gather"
        )
    return "check the input shapes; replace data-dependent branches by torch operations"


def no_tensors(found: str, where: str | None = None) -> CaptureError:
    """Return the error for a model whose result has something else than tensors in it."""
    cache = "; a decoder of Hugging Face returns no cache once model.config.use_cache = False"
    return CaptureError(
        "the model returns something else than tensors",
        where=where,
        expected="tensors, or tuples, lists and dicts of tensors",
        found=found,
        remedy="return tensors only, or wrap the model in a module that does"
        + (cache if found.endswith("Cache") else ""),
    )


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """Keep ``nn.Transformer`` from looking at the values of a mask, to see whether it is causal.

    Values cannot be looked at while a model is traced, and the mask itself says as much.
    """
    asked = transformer._detect_is_causal_mask

    def given(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    transformer._detect_is_causal_mask = given
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = asked


@contextmanager
def _without_traces() -> Iterator[None]:
    """Keep PyTorch from logging errors that it raises as well: some are caught."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
