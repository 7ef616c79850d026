"""A graph of Dynamo's with the weights that it is called with: it can run in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from mpq_compile.errors import MpqError
from mpq_compile.integrations.dynamo_graph import DynamoGraph


class BoundGraph:
    """A graph and the constants of one call.

    Dynamo compiles the code of a class once, whatever instance runs it: two blocks of one class
    share a graph and differ in what they hold.

    Attributes:
        graph: The graph.
        constants: What modules hold of its arguments, in order.
        numbers: Attributes of modules among its arguments, by position.
        signature: What it computes, whatever the sizes.
        names: Their names in the model.
        named: Whether the model has all of these names itself.
    """

    def __init__(
        self, graph: DynamoGraph, args: Sequence[Any], names_of: Mapping[int, str]
    ) -> None:
        self.graph = graph
        self._positions = graph.positions("constant")
        self._inputs = graph.positions("input")
        self.constants: tuple[Tensor, ...] = tuple(args[i] for i in self._positions)
        self.numbers = {i: float(args[i]) for i in graph.positions("number")}
        self.signature = graph.signature(self.numbers)
        self.names = tuple(
            names_of.get(id(tensor), graph.arguments[i].name)
            for i, tensor in zip(self._positions, self.constants, strict=True)
        )
        self.named = all(id(tensor) in names_of for tensor in self.constants)
        # Inference tensors keep no count.
        self._tracked = [i for i, t in enumerate(self.constants) if not t.is_inference()]
        self._versions = [self.constants[i]._version for i in self._tracked]

    @property
    def fixed(self) -> dict[int, Tensor]:
        """The constants that are no state, by their position among the arguments."""
        pairs = zip(self._positions, self.constants, strict=True)
        return {p: t for i, (p, t) in enumerate(pairs) if i not in self.graph.state}

    @property
    def state(self) -> list[str]:
        """Names of the constants that calls change."""
        return [self.names[i] for i in sorted(self.graph.state)]

    def holds(self, args: Sequence[Any]) -> bool:
        """Tell whether the arguments of a call have these constants, apart from state."""
        return all(args[i] is tensor for i, tensor in self.fixed.items()) and all(
            float(args[i]) == number for i, number in self.numbers.items()
        )

    def is_current(self) -> bool:
        """Tell whether no constant was written into, apart from state."""
        return self.written() <= self.graph.state

    def written(self) -> set[int]:
        """Return the places of constants that were written into since the graph was bound."""
        pairs = zip(self._tracked, self._versions, strict=True)
        return {i for i, version in pairs if self.constants[i]._version != version}

    def inputs_of(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the tensors of a call that are no constants."""
        return tuple(args[i] for i in self._inputs)

    @cached_property
    def module(self) -> fx.GraphModule:
        """A module of the inputs alone, in float; its parameters have the model's names."""
        return self.graph.as_module(self.names, self.constants, self.numbers)

    def run_float(self, args: Sequence[Any]) -> Any:
        """Run the graph as Dynamo gave it, without gradients."""
        with torch.no_grad():
            return self.graph.module(*args)

    def returned(self, computed: Sequence[Tensor], args: Sequence[Any]) -> tuple[Any, ...]:
        """Return what the graph returns, given what it computes."""
        values = iter(computed)
        return tuple(
            next(values)
            if output.kind == "computed"
            else args[output.value]
            if output.kind == "argument"
            else output.value
            for output in self.graph.outputs
        )

    def refuse_training(self, args: Sequence[Any], model: nn.Module | None) -> None:
        """Raise ``MpqError`` where the call is one of training, or wants gradients."""
        training = model is not None and any(module.training for module in model.modules())
        if training or self.graph.trains:
            raise MpqError(
                "the model is in training mode, and integer kernels have no gradients",
                where="torch.compile(backend='mpq')",
                expected="a model in eval mode",
                found="training mode",
                remedy="call model.eval() first; mpq.finetune trains quantized networks",
            )
        wanting = [t for t in self.inputs_of(args) if t.requires_grad]
        if wanting and torch.is_grad_enabled():
            raise MpqError(
                "an input requires gradients, and integer kernels have none",
                where="torch.compile(backend='mpq')",
                expected="inputs without requires_grad, or a call under torch.no_grad()",
                found=", ".join(f"{t.dtype}{list(t.shape)}" for t in wanting),
                remedy="call it under torch.inference_mode(), or detach the input",
            )
