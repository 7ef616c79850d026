"""Emission of one Relax module: flat buffers, our kernels by ``call_tir``, their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from mpq_compile.kernels import (
    attention,
    elementwise,
    embedding,
    frames,
    layer_norm,
    matmul,
    packing,
    pool,
    quantize_rows,
    recurrent,
    rotary,
    write_rows,
)
from mpq_compile.kernels.attention_workload import AttentionWorkload
from mpq_compile.kernels.choice import Choice, ChoiceOf, modelled
from mpq_compile.kernels.elementwise_workload import (
    NormWorkload,
    PoolWorkload,
    QuantizeRowsWorkload,
    RecurrentStepWorkload,
    RotaryWorkload,
    TransposeConvertWorkload,
    WriteRowsWorkload,
)
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload
from mpq_compile.kernels.frames import FramesWorkload
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.lower.naming import numbered
from mpq_compile.lower.parameters import Recipe, StoredSite, describe_workload
from mpq_compile.lower.views import View, dense

DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the lowered module.

    Args:
        var: Relax variable, flat.
        shape: Logical shape (PyTorch's).
        fmt: Storage: "u8", "bf16", "fp32", or a NumPy dtype for index tensors.
        nhwc: True where a 4-D tensor lies channels-last.
        bordered: True where it is stored with the padding that its readers ask for.
        source: Where the same elements lie already, if ``var`` is a copy made by movements.
    """

    var: Any
    shape: tuple[int, ...]
    fmt: str
    nhwc: bool = False
    bordered: bool = False
    source: View | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def view(self) -> View:
        """Where the elements lie: where movements took them from, or in ``var``."""
        if self.source is not None:
            return self.source
        if not self.nhwc:
            return dense(self.var, self.shape)
        batch, channels, height, width = self.shape
        return dense(self.var, (batch, height, width, channels)).permuted((0, 3, 1, 2))

    @property
    def layout_free(self) -> bool:
        """True where both layouts are the same bytes."""
        return len(self.shape) != 4 or self.shape[1] == 1 or self.shape[2] * self.shape[3] == 1


class Emitter:
    """Collects kernels, parameters and calls; :meth:`finish` gives the module.

    Args:
        tier: Instruction set the kernels are generated for.
        threads: Threads they may use.
        choice_of: Schedules of matrix multiplies that were tuned.
    """

    def __init__(self, tier: Tier, threads: int, choice_of: ChoiceOf = modelled) -> None:
        self.tier = tier
        self.threads = threads
        self.choice_of = choice_of
        self.builder = relax.BlockBuilder()
        # The node that is being lowered: what it emits bears its name.
        self.node = ""
        self._emitted = 0
        self.recipes: list[Recipe] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._parameter_vars: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}
        self._views: dict[Any, Any] = {}

    def emit(self, expression: Any) -> Any:
        """Bind an expression to a variable that bears the node's name."""
        self._emitted += 1
        return self.builder.emit(expression, numbered(self.node, self._emitted))

    # Parameters

    def parameter(self, recipe: Recipe) -> Any:
        """Register a parameter; return its variable."""
        kind = relax.TensorType((recipe.size,), recipe.dtype)
        var = relax.Var(f"p{len(self.recipes)}", kind)
        self.recipes.append(recipe)
        self._parameter_vars.append(var)
        return var

    def weights(self, recipe: Recipe) -> Any:
        """Register a parameter made of stored weights alone; equal ones are one."""
        key = repr(recipe)
        if key not in self._weights:
            self._weights[key] = self.parameter(recipe)
        return self._weights[key]

    def words(self, values: np.ndarray) -> Any:
        """Register a small int32 or float32 record given here; floats travel as their bits."""
        flat = np.ascontiguousarray(values).reshape(-1)
        numbers = [int(word) for word in flat.view(np.int32)]
        recipe = Recipe(
            kind="words", dtype=str(flat.dtype), size=flat.size, values={"words": numbers}
        )
        return self.parameter(recipe)

    def array(self, name: str, values: np.ndarray) -> Any:
        """Register an array that the artifact stores."""
        self.arrays[name] = np.ascontiguousarray(values).reshape(-1)
        stored = self.arrays[name]
        recipe = Recipe(
            kind="array", dtype=str(stored.dtype), size=stored.size, values={"name": name}
        )
        return self.parameter(recipe)

    def matmul_parameters(
        self,
        site: StoredSite,
        workload: ConvWorkload | LinearWorkload,
        values: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Register weights and epilogue record of a matrix multiply."""
        described = describe_workload(workload)
        elements, dtype = packing.packed_weight_size(workload, self.tier)
        weight = Recipe(
            kind="weight", dtype=dtype, size=elements, site=site.owner, workload=described
        )
        record = Recipe(
            kind="epilogue",
            dtype="int32",
            size=packing.record_words(workload, self.tier),
            site=site.name,
            workload=described,
            values=values,
        )
        return self.weights(weight), self.parameter(record)

    # Calls

    def kernel(
        self,
        workload: Any,
        arguments: Sequence[Any],
        shape: tuple[int, ...],
        fmt: str,
        nhwc: bool,
        cells: int | None = None,
    ) -> Value:
        """Call the kernel of ``workload``, which has one result.

        ``cells`` are the elements of the result where it is stored with more than its shape has.
        """
        kind = relax.TensorType((cells or math.prod(shape),), DTYPES[fmt])
        call = relax.call_tir(self._function(workload), list(arguments), kind)
        return Value(var=self.emit(call), shape=shape, fmt=fmt, nhwc=nhwc)

    def kernel_in_place(self, workload: Any, arguments: Sequence[Any], value: Value) -> Value:
        """Call a kernel that changes ``value``, its last argument; return it changed."""
        kind = relax.TensorType((value.size,), DTYPES[value.fmt])
        function, last = self._function(workload), len(arguments) - 1
        call = relax.op.call_tir_inplace(function, relax.Tuple(list(arguments)), last, kind)
        return replace(value, var=self.emit(call), source=None)

    def kernel_outputs(
        self, workload: Any, arguments: Sequence[Any], shape: tuple[int, ...], fmts: Sequence[str]
    ) -> list[Value]:
        """Call a kernel that stores its result once in each of ``fmts``, in logical order."""
        if len(fmts) == 1:
            return [self.kernel(workload, arguments, shape, fmts[0], False)]
        return self.kernel_results(workload, arguments, [(shape, fmt) for fmt in fmts])

    def kernel_results(
        self,
        workload: Any,
        arguments: Sequence[Any],
        results: Sequence[tuple[tuple[int, ...], str]],
    ) -> list[Value]:
        """Call a kernel of several results, given as (shape, format)."""
        kinds = [relax.TensorType((math.prod(shape),), DTYPES[fmt]) for shape, fmt in results]
        call = relax.call_tir(self._function(workload), list(arguments), kinds)
        made = self.emit(call)
        return [
            Value(var=self.emit(relax.TupleGetItem(made, index)), shape=shape, fmt=fmt)
            for index, (shape, fmt) in enumerate(results)
        ]

    def _function(self, workload: Any) -> Any:
        """Return the function of ``workload``; equal workloads share one."""
        if workload.key not in self._kernels:
            choice = self.choice_of(workload) if _is_matmul(workload) else None
            function = kernel_function(workload, self.tier, self.threads, choice)
            name = "k_" + "".join(c if c.isalnum() else "_" for c in workload.key)
            function = function.with_attr("global_symbol", name)
            self._kernels[workload.key] = self.builder.add_func(function, name)
        return self._kernels[workload.key]

    def matmul_name(self, workload: ConvWorkload | LinearWorkload) -> str:
        """Return what an audit calls a kernel: its key, and its schedule where it was tuned."""
        choice = self.choice_of(workload)
        return workload.key if choice is None else f"{workload.key}/{choice}"

    def relax_op(
        self,
        value: Value,
        function: Callable[[Any], Any],
        shape: tuple[int, ...],
        physical: tuple[int, ...] | None = None,
        source: View | None = None,
    ) -> Value:
        """Apply a data movement of Relax to ``value`` seen as ``physical`` (default: its shape).

        ``source`` says where the moved elements lie already.
        """
        moved = self.emit(function(self._viewed(value, physical or value.shape)))
        flat = self.emit(relax.op.reshape(moved, relax.ShapeExpr([math.prod(shape)])))
        self._views[flat] = moved
        return replace(value, var=flat, shape=shape, source=source)

    def _viewed(self, value: Value, physical: tuple[int, ...]) -> Any:
        """Return ``value`` in ``physical`` shape; movements in a row need no reshape between."""
        view = self._views.get(value.var)
        if view is not None and [int(n) for n in view.ty.shape] == list(physical):
            return view
        reshaped = relax.op.reshape(value.var, relax.ShapeExpr(list(physical)))
        return self.emit(reshaped)

    # Layouts

    def channels_last(self, value: Value) -> Value:
        """Bring a 4-D tensor to NHWC."""
        if value.nhwc or len(value.shape) != 4:
            return value
        return self._transposed(value, "to_nhwc")

    def logical(self, value: Value) -> Value:
        """Bring a tensor to PyTorch's order."""
        return self._transposed(value, "to_nchw") if value.nhwc else value

    def _transposed(self, value: Value, direction: str) -> Value:
        nhwc = direction == "to_nhwc"
        if value.layout_free:
            return replace(value, nhwc=nhwc)
        record = packing.pack_convert(0, 1.0, (float("-inf"), float("inf")), 0)
        return self.transpose_convert(value, direction, value.fmt, record)

    def transpose_convert(
        self, value: Value, direction: str, fmt: str, record: np.ndarray
    ) -> Value:
        """Change layout and format of a 4-D tensor in one kernel."""
        batch, channels, height, width = value.shape
        workload = TransposeConvertWorkload(
            batch=batch,
            channels=channels,
            pixels=height * width,
            source=value.fmt,  # type: ignore[arg-type]
            target=fmt,  # type: ignore[arg-type]
            direction=direction,  # type: ignore[arg-type]
        )
        arguments = [value.var, self.words(record)]
        return self.kernel(workload, arguments, value.shape, fmt, direction == "to_nhwc")

    # Assembly

    def finish(self, inputs: Sequence[Any], body: Callable[[], Sequence[Any]]) -> Any:
        """Return the module whose ``main(inputs…, parameters)`` computes what ``body`` emits.

        Args:
            inputs: Relax variables of the network's inputs, flat.
            body: Emits the network and returns its output variables, flat.
        """
        with self.builder.function("main", attrs={"num_input": len(inputs)}):
            with self.builder.dataflow():
                outputs = relax.Tuple(list(body()))
                result = self.builder.emit_output(outputs)
            self.builder.emit_func_output(result, params=[*inputs, *self._parameter_vars])
        return relax.transform.BundleModelParams()(self.builder.finalize())


def kernel_function(workload: Any, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc of a workload; only matrix multiplies have a ``choice``."""
    if choice is not None:
        return matmul.generate(workload, tier, threads, choice)
    return generator_of(workload)(workload, tier, threads)


def _is_matmul(workload: Any) -> bool:
    return isinstance(workload, (ConvWorkload, LinearWorkload))


def generator_of(workload: Any) -> Callable[[Any, Tier, int], Any]:
    """Return the generator of a workload's kernel."""
    return GENERATORS.get(type(workload), elementwise.generate)


# Kernels by the type of their workload; those that are left out are ``elementwise``'s.
GENERATORS: dict[type, Callable[[Any, Tier, int], Any]] = {
    ConvWorkload: matmul.generate,
    LinearWorkload: matmul.generate,
    AttentionWorkload: attention.generate,
    EmbeddingWorkload: embedding.generate,
    FramesWorkload: frames.generate,
    NormWorkload: layer_norm.generate,
    QuantizeRowsWorkload: quantize_rows.generate,
    RecurrentStepWorkload: recurrent.generate,
    RotaryWorkload: rotary.generate,
    WriteRowsWorkload: write_rows.generate,
    PoolWorkload: pool.generate,
}
