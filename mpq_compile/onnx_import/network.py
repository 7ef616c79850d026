"""A program as a module: its forward runs the nodes with the functions of ``operators``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from keyword import iskeyword
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate

from mpq_compile.errors import CaptureError, MpqError, UnsupportedOpError, nearest
from mpq_compile.onnx_import.operator import LARGEST_KNOWN, Known, Operator, Result, tensor
from mpq_compile.onnx_import.operators import OPERATORS
from mpq_compile.onnx_import.program import Node, Program

# Under this key a traced call remembers the node it is from.
SOURCE = "onnx_node"


class Values:
    """The values of a run: tensors, and arrays of what is known without data.

    Args:
        tensors: By name.
        known: By name; a constant may be in both.
    """

    def __init__(self, tensors: Mapping[str, Tensor], known: Mapping[str, Known]) -> None:
        self.tensors = dict(tensors)
        self.known = dict(known)

    def holds(self, name: str) -> bool:
        """Tell whether a value was computed."""
        return name in self.tensors or name in self.known

    def tensor(self, name: str) -> Tensor:
        """Return a value as a tensor."""
        if name not in self.tensors:
            self.tensors[name] = tensor(self.known[name])
        return self.tensors[name]

    def run(self, node: Node) -> None:
        """Compute the outputs of a node."""
        operator = operator_of(node)
        inputs = [name for name in node.inputs if name]
        if operator.host is not None and all(name in self.known for name in inputs):
            arrays = [self.known[name] if name else None for name in node.inputs]
            found = _called(node, operator.host, arrays)
            if found is not None:
                self.known[node.outputs[0]] = np.asarray(found)
                return
        arguments = [self._argument(node, operator, i) for i in range(len(node.inputs))]
        self._store(node, _called(node, operator.function, arguments))

    def _argument(self, node: Node, operator: Operator, index: int) -> Known | Tensor | None:
        name = node.inputs[index]
        if not name:
            return None
        if index in operator.known and name not in self.known:
            raise node.unsupported(
                f"input {index} ({name!r}) is computed from data",
                "give it a constant; sizes of inputs other than the batch must be fixed",
            )
        if index in operator.known or (index in operator.either and name in self.known):
            return self.known[name]
        return self.tensor(name)

    def _store(self, node: Node, result: Result) -> None:
        if isinstance(result, np.ndarray):
            self.known[node.outputs[0]] = result
            return
        results = [result] if isinstance(result, Tensor) else result
        for name, value in zip(node.outputs, results, strict=False):
            if name and value is None:
                raise node.unsupported(f"output {name!r} is read")
            if name:
                self.tensors[name] = value  # type: ignore[assignment]


def operator_of(node: Node) -> Operator:
    """Return how a node is computed.

    Raises:
        UnsupportedOpError: No operator of the table, and none that ONNX defines by others.
    """
    if node.op not in OPERATORS:
        raise UnsupportedOpError(
            f"the operator {node.op} is not supported",
            where=node.where,
            expected="an operator of mpq_compile.onnx_import.operators, or one made of them",
            found=node.op,
            remedy=f"export the model without it; {nearest(node.op, OPERATORS)}",
        )
    return OPERATORS[node.op]


def _called(
    node: Node, function: Callable[..., Any], arguments: Sequence[Known | Tensor | None]
) -> Any:
    try:
        return function(node, *arguments)
    except MpqError:
        raise
    except Exception as error:  # PyTorch raises many kinds for shapes and types that do not fit
        raise CaptureError(
            f"{node.op} cannot be computed",
            where=node.where,
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            remedy="check the shapes and types of the example inputs",
        ) from error


class OnnxNetwork(nn.Module):
    """A program that runs: constants are parameters and buffers under ``paths``.

    Args:
        program: What to run.
        paths: Attribute path by name of a constant.
    """

    def __init__(self, program: Program, paths: Mapping[str, str]) -> None:
        super().__init__()
        self.program = program
        self._known = known_constants(program.constants)
        read = {name for node in program.nodes for name in _read_as_tensors(node, self._known)}
        read.update(program.outputs)
        self._paths = {name: paths[name] for name in program.constants if name in read}
        for name, path in self._paths.items():
            _register(self, path, program.constants[name])
        self.forward = _named(self._run, program.inputs)

    def _run(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the output, or all of them, for tensors in the order of the program's inputs."""
        tensors = {name: _attribute(self, path) for name, path in self._paths.items()}
        tensors.update(zip(self.program.inputs, inputs, strict=True))
        values = Values(tensors, self._known)
        for node in self.program.nodes:
            with annotate({SOURCE: f"node {node.name!r} ({node.op})"}):
                values.run(node)
        outputs = tuple(values.tensor(name) for name in self.program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def _read_as_tensors(node: Node, known: Mapping[str, Known]) -> list[str]:
    """Return the inputs of a node that are not read as arrays alone."""
    operator = operator_of(node)
    arrays = (*operator.known, *operator.either)
    return [n for i, n in enumerate(node.inputs) if i not in arrays or n not in known]


def _named(function: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """Return a function of one argument for each name: the trace calls its inputs so."""

    def forward(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return function(*inputs)

    arguments = _identifiers(names)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in arguments]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _identifiers(names: Iterable[str]) -> list[str]:
    """Return names that Python takes; equal ones are numbered."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain.isidentifier() and not iskeyword(plain) else f"input_{plain}"
        found.append(plain if plain not in found else f"{plain}_{len(found)}")
    return found


def known_constants(constants: Mapping[str, Tensor]) -> dict[str, Known]:
    """Return the values of small constants."""
    return {
        name: value.numpy()
        for name, value in constants.items()
        if value.numel() <= LARGEST_KNOWN and value.dtype != torch.bfloat16
    }


def _register(module: nn.Module, path: str, value: Tensor) -> None:
    *owners, leaf = path.split(".")
    for part in owners:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if value.is_floating_point():
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(leaf, value)


def _attribute(module: nn.Module, path: str) -> Tensor:
    *owners, leaf = path.split(".")
    for part in owners:
        module = getattr(module, part)
    return getattr(module, leaf)
