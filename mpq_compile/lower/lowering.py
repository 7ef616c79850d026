"""Materialized FX graph → Relax module: one rule an operator, layouts chosen on the way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from tvm import relax

from mpq_compile.capture import source_line
from mpq_compile.errors import LoweringError, UnsupportedOpError
from mpq_compile.kernels.choice import ChoiceOf, modelled
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower import (
    rules_attention,
    rules_cache,
    rules_elementwise,
    rules_embedding,
    rules_float,
    rules_frames,
    rules_matmul,
    rules_norm,
    rules_recurrent,
)
from mpq_compile.lower.emit import Emitter, Value
from mpq_compile.lower.formats import STORAGE
from mpq_compile.lower.moves import MOVES
from mpq_compile.lower.parameters import Recipe, StoredSite
from mpq_compile.passes import ops
from mpq_compile.passes.base import ValueRecorder, constant, value_shapes
from mpq_compile.passes.kinds import RESHAPES
from mpq_compile.passes.materialized import Materialized
from mpq_compile.quant import ops as qops

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A Relax module and all that its parameters are made of.

    Args:
        module: ``main(inputs…, parameters)`` over flat tensors.
        recipes: One for each parameter, in order.
        sites: Stored weights by name.
        arrays: What the artifact stores, by name.
        kernel_of: Site id, or name of a node without weights, to the key of its kernel.
        input_shapes, input_dtypes, output_shapes, output_dtypes: What a caller passes and gets.
        updates: Numbers of outputs that are inputs, changed in place, to those inputs' numbers.
    """

    module: Any
    recipes: Sequence[Recipe]
    sites: Mapping[str, StoredSite]
    arrays: Mapping[str, np.ndarray]
    kernel_of: Mapping[str, str]
    input_shapes: Sequence[tuple[int, ...]]
    input_dtypes: Sequence[str]
    output_shapes: Sequence[tuple[int, ...]]
    output_dtypes: Sequence[str]
    updates: Mapping[int, int]


def lower(
    materialized: Materialized,
    inputs: Sequence[Tensor],
    tier: Tier,
    threads: int,
    choice_of: ChoiceOf = modelled,
) -> Lowered:
    """Lower a materialized graph for the shapes of ``inputs``.

    ``choice_of`` gives the tuned schedules of its matrix multiplies.

    Raises:
        LoweringError: An operator has no rule; names the node and its source line.
    """
    return Lowering(materialized, inputs, Emitter(tier, threads, choice_of)).run()


class Lowering:
    """State of one lowering: what stands for each node, and what is stored."""

    def __init__(
        self, materialized: Materialized, inputs: Sequence[Tensor], emitter: Emitter
    ) -> None:
        self.graph = materialized.module
        self.records = materialized.records
        self.network = materialized.network
        self.inputs = inputs
        self.emitter = emitter
        self.shapes = value_shapes(self.graph, inputs)
        self.integers = _integer_values(self.graph, inputs)
        self.values: dict[fx.Node, Any] = {}
        self.sites: dict[str, StoredSite] = {}
        self.kept: dict[Hashable, str] = {}
        self.kernel_of: dict[str, str] = {}
        self.updates: dict[int, int] = {}

    def run(self) -> Lowered:
        nodes = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        variables = []
        for node, example in zip(nodes, self.inputs, strict=True):
            fmt = STORAGE[example.dtype]
            kind = relax.TensorType((example.numel(),), _dtype_name(example.dtype))
            variables.append(relax.Var(node.name, kind))
            self.values[node] = Value(var=variables[-1], shape=tuple(example.shape), fmt=fmt)
        module = self.emitter.finish(variables, self._body)
        output = next(node for node in self.graph.graph.nodes if node.op == "output")
        return Lowered(
            module=module,
            recipes=self.emitter.recipes,
            sites=self.sites,
            arrays=self.emitter.arrays,
            kernel_of=self.kernel_of,
            input_shapes=[tuple(example.shape) for example in self.inputs],
            input_dtypes=[_dtype_name(example.dtype) for example in self.inputs],
            output_shapes=[self.shape(node) for node in output.args[0]],
            output_dtypes=[_dtype_name(self.shapes[node.name][1]) for node in output.args[0]],
            updates=self.updates,
        )

    def _body(self) -> list[Any]:
        for node in self.graph.graph.nodes:
            if node.op == "output":
                return [self.emitter.logical(self.value(out)).var for out in node.args[0]]
            # A rule may have lowered a user together with its node.
            pending = node not in self.values and node.name not in self.integers
            self.emitter.node = node.name
            if node.op == "call_function" and pending:
                self.values[node] = self._lower(node)
        raise AssertionError("a graph ends with its output")

    def _lower(self, node: fx.Node) -> Any:
        rule = _RULES.get(node.target)
        try:
            return rule(self, node) if rule else rules_float.float_op(self, node)
        except LoweringError:
            raise
        except UnsupportedOpError as error:
            raise UnsupportedOpError(
                error.message,
                where=f"node {node.name}, {source_line(node)}",
                found=error.found,
                remedy=error.remedy,
            ) from error
        except Exception as error:
            raise LoweringError(
                f"cannot lower {node.target}",
                where=f"node {node.name}, {source_line(node)}",
                found=f"{type(error).__name__}: {str(error).strip()[:400]}",
                remedy="constrain the sites around it to fp32, or replace the operator",
            ) from error

    # Values

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's tensor for the example inputs."""
        return self.shapes[node.name][0]

    def value(self, node: Any) -> Value:
        """The lowered tensor of a node; constants are registered when first used."""
        if node not in self.values:
            tensor = constant(self.graph, node)
            if tensor is None:
                raise LoweringError("no tensor", where=str(node), remedy="report this graph")
            var = self.emitter.array(str(node.target), tensor.contiguous().numpy())
            self.values[node] = Value(var=var, shape=tuple(tensor.shape), fmt=STORAGE[tensor.dtype])
        return self.values[node]

    def tensor(self, node: fx.Node) -> np.ndarray:
        """The array of a constant; bf16 as its bits."""
        tensor = constant(self.graph, node)
        assert tensor is not None
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.contiguous().numpy()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _integer_values(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the value of every shape computation for these inputs, by node name."""
    recorder = ValueRecorder(module, lambda _, v: v if isinstance(v, (int, float)) else None)
    with torch.no_grad():
        recorder.run(*inputs)
    return {name: value for name, value in recorder.kept.items() if value is not None}  # type: ignore[misc]


_RULES: dict[Any, Callable[[Lowering, fx.Node], Any]] = {
    qops.QCONV2D: rules_matmul.conv2d,
    qops.QLINEAR: rules_matmul.linear,
    qops.QUANTIZE_ROWS: rules_matmul.quantize_rows,
    qops.QLINEAR_ROWS: rules_matmul.linear_rows,
    qops.CONVERT: rules_elementwise.convert,
    qops.QADD: rules_elementwise.add,
    qops.QMUL: rules_elementwise.multiply,
    qops.LUT: rules_elementwise.table,
    qops.EMBEDDING: rules_embedding.embedding,
    qops.ATTENTION: rules_attention.attention,
    qops.AVG_POOL2D: rules_elementwise.average_pool,
    qops.MAX_POOL2D: rules_elementwise.max_pool,
    aten.layer_norm.default: rules_norm.layer_norm,
    aten.rms_norm.default: rules_norm.rms_norm,
    ops.rotary: rules_attention.rotary,
    ops.lstm_step: rules_recurrent.lstm_step,
    ops.gru_step: rules_recurrent.gru_step,
    ops.write_rows: rules_cache.write_rows,
    aten.cat.default: rules_elementwise.concat,
    ops.frames_beside: rules_frames.frames_beside,
    operator.getitem: rules_float.pick,
    **dict.fromkeys(RESHAPES, rules_float.reshape),
    **dict.fromkeys(MOVES, rules_float.move),
}
