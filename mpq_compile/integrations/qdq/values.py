"""What rules pass to each other: tensors of the ONNX graph with their sizes, and calls of ATen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the ONNX graph.

    Args:
        name: Its name there.
        shape: Its shape for the example inputs.
        longer: Its shape for twice their batch; ``shape`` again where the batch is fixed.
        dtype: float32 for everything that has codes or is bf16 in the materialized graph.
    """

    name: str
    shape: tuple[int, ...]
    longer: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def free(self) -> list[int]:
        """Dimensions that follow the batch."""
        pairs = enumerate(zip(self.shape, self.longer, strict=True))
        return [axis for axis, (size, longer) in pairs if size != longer]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of an operator: tensors are :class:`Value`, sizes are the example's integers.

    Args:
        name: Stem of the names of what is written for it.
        target: ATen operator, or function of ``passes.ops``.
        args, kwargs: Its arguments.
        result: Sizes of what it returns; None where it returns several tensors.
    """

    name: str
    target: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Value | None

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    @property
    def x(self) -> Value:
        """The first tensor."""
        value = self.args[0]
        assert isinstance(value, Value)
        return value

    @property
    def out(self) -> Value:
        """Sizes of the one result."""
        assert self.result is not None
        return self.result
