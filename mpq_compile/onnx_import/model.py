"""A ``.onnx`` file as a module that ``torch.export`` traces, and what the trace cannot know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from mpq_compile.errors import CaptureError
from mpq_compile.onnx_import.constants import fold_constants
from mpq_compile.onnx_import.fixed import FixedSite, fixed_sites, without_pairs
from mpq_compile.onnx_import.free_batch import free_batch
from mpq_compile.onnx_import.linears import with_linears
from mpq_compile.onnx_import.naming import parameter_paths
from mpq_compile.onnx_import.network import SOURCE, OnnxNetwork, operator_of
from mpq_compile.onnx_import.operators import OPERATORS
from mpq_compile.onnx_import.program import Program, program_of
from mpq_compile.onnx_import.recurrences import with_recurrences
from mpq_compile.onnx_import.source import Source, read


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An imported file.

    Args:
        path: The file.
        network: Its graph as a module.
        fixed: What the file has quantized, by the attribute path of a layer's weight.
    """

    path: Path
    network: OnnxNetwork
    fixed: Mapping[str, FixedSite]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return inputs of the file's shapes, 1 where the first dimension is free.

        Floats are drawn from a normal distribution with a fixed seed, integers are zeros: they
        may be indices.

        Raises:
            CaptureError: Another dimension is free.
        """
        generator = torch.Generator().manual_seed(0)
        inputs = []
        for name, (shape, dtype) in self.network.program.inputs.items():
            if any(size is None for size in shape[1:]):
                raise self._free(name, shape)
            sizes = [1 if size is None else size for size in shape]
            floats = dtype.is_floating_point
            inputs.append(
                torch.randn(sizes, generator=generator, dtype=dtype)
                if floats
                else torch.zeros(sizes, dtype=dtype)
            )
        return tuple(inputs)

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Raise ``CaptureError`` where inputs do not fit the file's."""
        wanted = self.network.program.inputs
        if len(inputs) != len(wanted):
            raise self._misfit(
                "the model's inputs", f"{len(wanted)} ({', '.join(wanted)})", len(inputs)
            )
        for value, (name, (shape, dtype)) in zip(inputs, wanted.items(), strict=True):
            if value.dtype != dtype:
                raise self._misfit(f"input {name!r}", dtype, value.dtype)
            sizes = zip(shape, value.shape, strict=False)
            if len(shape) != value.dim() or any(w is not None and w != s for w, s in sizes):
                raise self._misfit(f"input {name!r}", _written(shape), list(value.shape))

    def describe(self, module: fx.GraphModule) -> None:
        """Let each call of a traced graph say the node of the file that it is from."""
        for node in module.graph.nodes:
            source = (node.meta.get("custom") or {}).get(SOURCE)
            if source is not None:
                node.meta["stack_trace"] = f'File "{self.path}", {source}'

    def _free(self, name: str, shape: Sequence[int | None]) -> CaptureError:
        return CaptureError(
            "the file leaves sizes of an input free",
            where=f"{self.path}, input {name!r}",
            expected="fixed sizes after the first dimension, or example inputs",
            found=_written(shape),
            remedy="pass example inputs of the shape to compile; on the command line, fix the "
            "sizes in the file with onnx.tools.update_model_dims",
        )

    def _misfit(self, what: str, expected: object, found: object) -> CaptureError:
        return CaptureError(
            "the example inputs do not fit the model",
            where=f"{self.path}, {what}",
            expected=expected,
            found=found,
            remedy="pass tensors like the inputs that the file names",
        )


def import_onnx(path: Path) -> OnnxModel:
    """Read a file.

    Raises:
        CaptureError: It cannot be read, or does not compute in float32.
        UnsupportedOpError: It holds an operator, or a form of one, that is not supported.
    """
    return model_of(read(path, OPERATORS))


def model_of(source: Source) -> OnnxModel:
    """Return the network of a normalised model."""
    program = program_of(source)
    for node in program.nodes:
        operator_of(node)
    program = with_recurrences(free_batch(fold_constants(program)))
    program, ranges = without_pairs(with_linears(program))
    _check_float32(program, source.path)
    paths = parameter_paths(program, source.scopes)
    return OnnxModel(
        path=source.path,
        network=OnnxNetwork(program, paths),
        fixed=fixed_sites(program, ranges, paths),
    )


def _check_float32(program: Program, path: Path) -> None:
    dtypes = {name: dtype for name, (_, dtype) in program.inputs.items()}
    dtypes.update({name: value.dtype for name, value in program.constants.items()})
    for name, dtype in dtypes.items():
        if dtype in (torch.float16, torch.bfloat16):
            raise CaptureError(
                "the model does not compute in float32",
                where=f"{path}, {name!r}",
                expected="float32 inputs and weights",
                found=str(dtype),
                remedy="export the float32 model; bf16 is a candidate to choose",
            )


def _written(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
