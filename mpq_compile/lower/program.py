"""A lowered Relax module as a list of calls: what runs, on which tensors, in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from tvm import IRModule, ir, relax


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor: an input, a parameter, or what a call computes (``value``), by its number."""

    space: Literal["input", "parameter", "value"]
    index: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of one PrimFunc: operands, then the values it writes.

    ``name`` is that of the variable which is bound to it (``lower.naming``).
    """

    name: str
    function: str
    operands: Sequence[Operand]
    results: Sequence[Operand]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def cells(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.cells * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Program:
    """Calls in order.

    Args:
        inputs, parameters, values: Tensors by number.
        outputs: Numbers of the values that are returned; inputs that calls change in place are
            returned too, and stand not here.
    """

    calls: Sequence[Call]
    inputs: Sequence[Tensor]
    parameters: Sequence[Tensor]
    values: Sequence[Tensor]
    outputs: Sequence[int]


class NotAProgram(Exception):
    """The module needs the virtual machine; the text says what for."""


def read_program(module: IRModule) -> Program:
    """Return the calls of ``main``.

    Raises:
        NotAProgram: ``main`` does something else than calling PrimFuncs on tensors of fixed shape.
    """
    module = relax.transform.RewriteDataflowReshape()(module)
    return _Reader(module["main"]).read()


@dataclass
class _Reader:
    """Walks the bindings; ``known`` maps variables to operands, or to tuples of them."""

    main: Any
    known: dict[Any, Any] = field(default_factory=dict)
    values: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    updated: set[int] = field(default_factory=set)
    name: str = ""

    def read(self) -> Program:
        *inputs, parameters = self.main.params
        if int(self.main.attrs["num_input"]) != len(inputs):
            raise NotAProgram("parameters are not bundled")
        for index, var in enumerate(inputs):
            self.known[var] = Operand(space="input", index=index)
        fields = list(parameters.ty.fields)
        self.known[parameters] = tuple(
            Operand(space="parameter", index=index) for index in range(len(fields))
        )
        for block in self.main.body.blocks:
            for binding in block.bindings:
                self.name = binding.var.name
                self.known[binding.var] = self._value(binding.value)
        return Program(
            calls=self.calls,
            inputs=[_tensor(var.ty) for var in inputs],
            parameters=[_tensor(ty) for ty in fields],
            values=self.values,
            outputs=self._outputs(),
        )

    def _outputs(self) -> list[int]:
        results = self._value(self.main.body.body)
        results = results if isinstance(results, tuple) else (results,)
        made = [o for o in results if o.space != "input" or o.index not in self.updated]
        numbers = [operand.index for operand in made]
        if any(operand.space != "value" for operand in made) or len({*numbers}) < len(numbers):
            raise NotAProgram("an output is an input, or is returned twice")
        return numbers

    def _value(self, value: Any) -> Any:
        if isinstance(value, relax.Var):
            return self.known[value]
        if isinstance(value, relax.Tuple):
            return tuple(self._value(item) for item in value.fields)
        if isinstance(value, relax.TupleGetItem):
            return self._value(value.tuple_value)[value.index]
        if isinstance(value, relax.Call):
            return self._call(value)
        raise NotAProgram(f"{type(value).__name__} in main")

    def _call(self, call: Any) -> Any:
        name = getattr(call.op, "name", "")
        if name == "relax.reshape":
            return self._value(call.args[0])
        if name not in ("relax.call_tir", "relax.call_tir_inplace"):
            raise NotAProgram(f"{name or type(call.op).__name__} in main")
        operands = self._value(call.args[1])
        if any(not isinstance(operand, Operand) for operand in operands):
            raise NotAProgram("nested tuples in main")
        if name == "relax.call_tir_inplace":
            return self._in_place(call, operands)
        several = isinstance(call.ty, ir.TupleType)
        results = tuple(self._new(ty) for ty in (call.ty.fields if several else [call.ty]))
        function = call.args[0].name_hint
        self._add(function, operands, results)
        return results if several else results[0]

    def _in_place(self, call: Any, operands: tuple[Operand, ...]) -> Operand:
        """Add a call that changes its last operand, an input."""
        function, changed = call.args[0].name_hint, operands[-1]
        self._add(function, operands, ())
        self.updated.add(changed.index)
        return changed

    def _add(
        self, function: str, operands: tuple[Operand, ...], results: tuple[Operand, ...]
    ) -> None:
        call = Call(name=self.name, function=function, operands=operands, results=results)
        self.calls.append(call)

    def _new(self, ty: Any) -> Operand:
        self.values.append(_tensor(ty))
        return Operand(space="value", index=len(self.values) - 1)


def _tensor(ty: Any) -> Tensor:
    try:
        shape = tuple(int(size) for size in ty.shape)
    except (TypeError, AttributeError, ValueError) as error:
        raise NotAProgram("a tensor's shape is not fixed") from error
    return Tensor(shape=shape, dtype=str(ty.dtype))
