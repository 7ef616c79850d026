"""Sizes that follow the batch: where ONNX wants them as tensors."""

from __future__ import annotations

from mpq_compile.errors import LoweringError
from mpq_compile.integrations.qdq.values import Value
from mpq_compile.integrations.qdq.writer import Writer


class Sizes:
    """Writes target shapes of Reshape and Expand.

    Args:
        writer: The graph.
        source: An input of the network, whose dimension 0 is the batch.
    """

    def __init__(self, writer: Writer, source: Value) -> None:
        self.writer, self.source = writer, source

    def reshaped(self, result: Value) -> str:
        """Return the tensor of a Reshape's target; one free dimension is what is left."""
        if len(result.free) > 1:
            return self._with_batch(result, result.free)
        return self.writer.sizes(
            *(-1 if axis in result.free else size for axis, size in enumerate(result.shape))
        )

    def expanded(self, x: Value, result: Value) -> str:
        """Return the tensor of an Expand's target; 1 keeps the size that the input has."""
        lead = result.rank - x.rank
        kept = [axis + lead for axis in x.free]
        sizes = tuple(1 if axis in kept else size for axis, size in enumerate(result.shape))
        new = [axis for axis in result.free if axis not in kept]
        target = Value(name=result.name, shape=sizes, longer=result.longer)
        return self._with_batch(target, new) if new else self.writer.sizes(*sizes)

    def _with_batch(self, result: Value, free: list[int]) -> str:
        parts = [
            self._multiple(result, axis) if axis in free else self.writer.sizes(size)
            for axis, size in enumerate(result.shape)
        ]
        return self.writer.op("Concat", *parts, into="sizes", axis=0)

    def _multiple(self, result: Value, axis: int) -> str:
        """Return a size that is a multiple of the batch, int64 [1]."""
        batch, longer = self.source.shape[0], self.source.longer[0]
        times, rest = divmod(result.shape[axis], batch)
        if rest or result.longer[axis] != times * longer:
            raise LoweringError(
                "a size follows the batch in another way than as its multiple",
                where=f"{result.name}, dimension {axis}",
                expected=f"{times or 1} · batch",
                found=f"{result.shape[axis]} at {batch}, {result.longer[axis]} at {longer}",
                remedy="export the model with a fixed batch",
            )
        writer = self.writer
        size = writer.op("Shape", self.source.name, into="batch", start=0, end=1)
        return writer.op("Mul", size, writer.sizes(times), into="size") if times != 1 else size
