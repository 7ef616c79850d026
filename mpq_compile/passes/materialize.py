"""Replace the float graph by the operators that run: integer sites, int8 tensors between them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mpq_compile.errors import LoweringError
from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, constant, is_call
from mpq_compile.passes.formats import (
    PAD,
    Kind,
    kinds,
    native_formats,
    quantizer_roots,
    stored_formats,
)
from mpq_compile.passes.materialize_attention import attention
from mpq_compile.passes.network import Network
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant import ops as qops
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.multipliers import (
    ROW_ZERO_POINT,
    bounds_of,
    channel_multipliers,
    f32,
    scale_of,
    zero_point_of,
)
from mpq_compile.quant.pooling import pool_windows
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import Candidate, QParams, Site, format_bits, storage

aten = torch.ops.aten
# |Σ x·w| ≤ K · 255 · 128 must stay below 2^31 for the kernels' int32 accumulators.
MAX_INPUTS = (2**31 - 1) // (255 * 128)


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """What a site was given: enough to store it at its true size and to build it again.

    Args:
        site: The site.
        candidate: Its candidate.
        node: Name of its node in the materialized graph.
        weight: Codes with scales, or the float weight for fp32 and bf16.
        bias: float32 [N].
        has_bias: False where the bias is all zeros and need not be stored.
        input_scale: Scale of the input's codes, 1.0 for float input.
        output_scale: Scale of the output's codes, 1.0 for float output.
    """

    site: Site
    candidate: Candidate
    node: str
    weight: QuantizedWeight | Tensor
    bias: Tensor
    has_bias: bool
    input_scale: float
    output_scale: float


@dataclass(frozen=True, kw_only=True)
class Materialized:
    """The graph that is lowered, and the oracle that checks it.

    Args:
        module: GraphModule of ``mpq`` and ATen operators; flat inputs, flat tuple of outputs.
        records: By node name.
        network: The float network it came from.
        formats: Storage format by node name of the float graph.
        floats: Names of the nodes that TVM computes in float, in order of execution.
    """

    module: fx.GraphModule
    records: Mapping[str, SiteRecord]
    network: Network
    formats: Mapping[str, str]
    floats: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Materialize:
    """Float graph + calibration + assignment → :class:`Materialized`.

    Args:
        network: The prepared network.
        calibration: Ranges of its tensors.
        assignment: Site id to candidate name; every site.
        allow_float: Run operators without a rule in float instead of refusing them.
    """

    network: Network
    calibration: Calibration
    assignment: Mapping[str, str]
    allow_float: bool = False

    def __call__(self) -> Materialized:
        return _Builder(self).build()


def materialize(
    network: Network,
    calibration: Calibration,
    assignment: Mapping[str, str],
    allow_float: bool = False,
) -> Materialized:
    """Short form of :class:`Materialize`."""
    return Materialize(
        network=network, calibration=calibration, assignment=assignment, allow_float=allow_float
    )()


class _Builder:
    """State of one materialization: the new graph and what stands for each old tensor."""

    def __init__(self, task: Materialize) -> None:
        self.task = task
        self.network = task.network
        self.old = task.network.module
        self.new = fx.GraphModule(self.old, fx.Graph())
        self.graph = self.new.graph
        self.kinds = kinds(task.network, task.allow_float)
        self.roots = quantizer_roots(task.network, self.kinds)
        site_of = task.network.site_of
        self.candidates = {
            name: Candidate.parse(task.assignment[site.id]) for name, site in site_of.items()
        }
        self.formats = stored_formats(task.network, self.kinds, self.candidates)
        self.native = native_formats(task.network, self.kinds, self.candidates)
        self.made: dict[str, dict[str, fx.Node]] = {}
        self.rows: dict[str, tuple[fx.Node, ...]] = {}
        self.records: dict[str, SiteRecord] = {}
        self.floats: list[str] = []
        self._anchor = self.graph.output((None,))

    def build(self) -> Materialized:
        for node in self.old.graph.nodes:
            with self.graph.inserting_before(self._anchor):
                self._visit(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        self.new.recompile()
        kept = {node.name for node in self.graph.nodes}
        return Materialized(
            module=self.new,
            records=self.records,
            network=self.network,
            formats=self.formats,
            floats=[name for name in self.floats if name in kept],
        )

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            outputs = fx.node.map_arg(node.args[0], lambda n: self.operand(n, "fp32"))
            self._anchor.args = (tuple(outputs),)
        elif node.op == "placeholder":
            self.made[node.name] = {"fp32": self.graph.node_copy(node)}
        elif node.op != "get_attr":
            rule = _RULES[self.kinds[node.name]]
            new, fmt = rule(self, node)
            _keep_source(node, new)
            self.made[node.name] = {fmt: new}

    # Operands

    def stored(self, node: fx.Node) -> str:
        """Format in which a tensor of the old graph is stored."""
        return self.formats[node.name]

    def qparams(self, node: fx.Node, fmt: str) -> QParams | None:
        """Qparams of a tensor in ``fmt``; None for float formats."""
        if storage(fmt) != "u8":
            return None
        return self.task.calibration.qparams(self.roots[node.name], format_bits(fmt))

    def operand(self, node: fx.Node, fmt: str) -> fx.Node:
        """The new node that holds old ``node`` in ``fmt``, converted once where it must be."""
        self.raw(node)
        made = self.made[node.name]
        if fmt not in made:
            source_fmt, source = next(iter(made.items()))
            made[fmt] = self.convert(
                source, self.qparams(node, source_fmt), self.qparams(node, fmt), storage(fmt)
            )
        return made[fmt]

    def convert(
        self,
        source: fx.Node,
        before: QParams | None,
        after: QParams | None,
        out: str,
        bounds: tuple[float, float] | None = None,
    ) -> fx.Node:
        """Emit quantize, dequantize, requantize or a change of float format."""
        factor = f32(scale_of(before) / scale_of(after))
        limits = bounds_of(after) if bounds is None else bounds
        args = (source, zero_point_of(before), factor, limits, zero_point_of(after), out)
        return self.graph.call_function(qops.CONVERT, args)

    def attribute(self, name: str, value: Tensor) -> fx.Node:
        """Register a constant of the new graph."""
        return add_constant(self.new, self._anchor, name, value)

    def raw(self, node: fx.Node) -> fx.Node:
        """The new node of old ``node`` in whatever format it has."""
        if node.name not in self.made:  # a constant, copied when it is first used
            value = constant(self.old, node)
            assert value is not None
            self.made[node.name] = {"fp32": self.attribute(str(node.target), value)}
        return next(iter(self.made[node.name].values()))

    # Rules: each returns the new node and the format of its value.

    def site(self, node: fx.Node) -> tuple[fx.Node, str]:
        site, candidate = self.network.site_of[node.name], self.candidates[node.name]
        x, residual = node.args[0], node.args[3]
        fmt = self.stored(node)
        before, after = self.qparams(x, candidate.input_format), self.qparams(node, fmt)
        weight = self._weight(site, candidate)
        bias = fitted_bias(self.network, self.task.calibration, site.id, candidate)
        codes, weight_scale = _codes_and_scale(weight, candidate)
        _check_accumulator(site, codes, candidate)
        scale, shift = channel_multipliers(
            weight_scale.numpy(),
            bias.numpy(),
            scale_of(before),
            scale_of(after),
        )
        params = (
            self.attribute(f"{site.path}.codes", codes),
            self.attribute(f"{site.path}.multiplier", torch.from_numpy(scale)),
            self.attribute(f"{site.path}.offset", torch.from_numpy(shift)),
        )
        added, added_qparams = self._residual(residual)
        geometry = () if is_call(node, ops.site_linear) else tuple(node.args[4:9])
        zero_point = ROW_ZERO_POINT if candidate.dynamic else zero_point_of(before)
        epilogue = (
            (zero_point, zero_point_of(added_qparams), zero_point_of(after)),
            f32(scale_of(added_qparams) / scale_of(after)),
            bounds_of(after, *node.args[-2:]),
            storage(fmt),
        )
        target = qops.QCONV2D if geometry else qops.QLINEAR
        inputs: tuple[fx.Node, ...] = (self.operand(x, candidate.input_format),)
        if candidate.dynamic:
            _check_dynamic(site, candidate)
            target, inputs = qops.QLINEAR_ROWS, self._rows(x)
        args = (*inputs, *params, added, *geometry, *epilogue)
        new = self.graph.call_function(target, args)
        self.records[new.name] = SiteRecord(
            site=site,
            candidate=candidate,
            node=new.name,
            weight=weight,
            bias=bias,
            has_bias=bool(bias.any()),
            input_scale=scale_of(before),
            output_scale=scale_of(after),
        )
        return new, fmt

    def _weight(self, site: Site, candidate: Candidate) -> QuantizedWeight | Tensor:
        weight = self.network.weight(site.id).float()
        if candidate.is_float:
            return weight if candidate.weight_bits == 32 else weight.bfloat16()
        return fitted_weight(self.network, self.task.calibration, site.id, candidate)

    def _rows(self, x: fx.Node) -> tuple[fx.Node, ...]:
        """Codes and row scales of a tensor; sites that read the same tensor share them."""
        if x.name not in self.rows:
            both = self.graph.call_function(qops.QUANTIZE_ROWS, (self.operand(x, "fp32"),))
            picks = [self.graph.call_function(operator.getitem, (both, i)) for i in range(2)]
            self.rows[x.name] = tuple(picks)
        return self.rows[x.name]

    def _residual(self, residual: Any) -> tuple[fx.Node | None, QParams | None]:
        if residual is None:
            return None, None
        fmt = self.stored(residual)
        return self.operand(residual, fmt), self.qparams(residual, fmt)

    def add(self, node: fx.Node) -> tuple[fx.Node, str]:
        a, b = node.args[:2]
        fmt = self.stored(node)
        (new_a, qa), (new_b, qb) = self._residual(a), self._residual(b)
        after = self.qparams(node, fmt)
        scales = tuple(f32(scale_of(q) / scale_of(after)) for q in (qa, qb))
        zero_points = tuple(zero_point_of(q) for q in (qa, qb, after))
        bounds = bounds_of(after, *node.args[2:])
        args = (new_a, new_b, zero_points, scales, bounds, storage(fmt))
        return self.graph.call_function(qops.QADD, args), fmt

    def multiply(self, node: fx.Node) -> tuple[fx.Node, str]:
        a, b = node.args[:2]
        if self.network.shapes[a.name][0] != self.network.shapes[node.name][0]:
            a, b = b, a  # the kernel broadcasts its second operand
        fmt = self.stored(node)
        (new_a, qa), (new_b, qb) = self._residual(a), self._residual(b)
        after = self.qparams(node, fmt)
        factor = f32(scale_of(qa) * scale_of(qb) / scale_of(after))
        zero_points = tuple(zero_point_of(q) for q in (qa, qb, after))
        bounds = bounds_of(after, *node.args[2:])
        args = (new_a, new_b, zero_points, factor, bounds, storage(fmt))
        return self.graph.call_function(qops.QMUL, args), fmt

    def affine(self, node: fx.Node) -> tuple[fx.Node, str]:
        """A depthwise 1×1 convolution whose weights are one: the affine is its epilogue."""
        x, fmt = node.args[0], self.stored(node)
        new_x, before = self._residual(x)
        after = self.qparams(node, fmt)
        gamma, beta = (constant(self.old, node.args[i]) for i in (1, 2))
        assert gamma is not None and beta is not None
        scale, shift = channel_multipliers(
            gamma.numpy(), beta.numpy(), scale_of(before), scale_of(after)
        )
        dtype = torch.float32 if before is None else torch.int8
        params = (
            self.attribute(f"{node.name}_ones", torch.ones(len(gamma), 1, 1, 1, dtype=dtype)),
            self.attribute(f"{node.name}_multiplier", torch.from_numpy(scale)),
            self.attribute(f"{node.name}_offset", torch.from_numpy(shift)),
        )
        zero_points = (zero_point_of(before), 0, zero_point_of(after))
        geometry = ((1, 1), (0, 0, 0, 0), (1, 1), len(gamma), (1, 1))
        bounds = bounds_of(after, *node.args[3:])
        args = (new_x, *params, None, *geometry, zero_points, 1.0, bounds, storage(fmt))
        return self.graph.call_function(qops.QCONV2D, args), fmt

    def clamp(self, node: fx.Node) -> tuple[fx.Node, str]:
        x, fmt = node.args[0], self.stored(node)
        new_x, before = self._residual(x)
        after = self.qparams(node, fmt)
        bounds = bounds_of(after, *node.args[1:])
        return self.convert(new_x, before, after, storage(fmt), bounds), fmt

    def average(self, node: fx.Node) -> tuple[fx.Node, str]:
        x, fmt = node.args[0], self.stored(node)
        new_x, before = self._residual(x)
        after = self.qparams(node, fmt)
        windows = pool_windows(node, self.network.shapes[x.name][0])
        factor = scale_of(before) / scale_of(after)
        scale = (factor / windows.divisors.astype(np.float64)).astype(np.float32)
        args = (
            new_x,
            windows.flat_rows,
            windows.flat_columns,
            self.attribute(f"{node.name}_scale", torch.from_numpy(scale)),
            (zero_point_of(before), zero_point_of(after)),
            bounds_of(after),
            storage(fmt),
        )
        new = self.graph.call_function(qops.AVG_POOL2D, args)
        if len(self.network.shapes[node.name][0]) == 2:
            new = self.graph.call_function(aten.flatten.using_ints, (new, 1))
        return new, fmt

    def max_pool(self, node: fx.Node) -> tuple[fx.Node, str]:
        fmt = self.stored(node)
        kernel = _pair(node.args[1])
        stride = _pair(argument(node, 2, "stride", ()) or kernel)
        padding = _pair(argument(node, 3, "padding", 0))
        dilation = _pair(argument(node, 4, "dilation", 1))
        ceil_mode = bool(argument(node, 5, "ceil_mode", False))
        args = (self.operand(node.args[0], fmt), kernel, stride, padding, dilation, ceil_mode)
        return self.graph.call_function(qops.MAX_POOL2D, args), fmt

    def table(self, node: fx.Node) -> tuple[fx.Node, str]:
        x, fmt = node.args[0], self.stored(node)
        if storage(fmt) != "u8":
            return self.float_op(node)
        source = self.stored(x) if storage(self.stored(x)) == "u8" else fmt
        before, after = self.qparams(x, source), self.qparams(node, fmt)
        assert before is not None and after is not None
        table = self.attribute(f"{node.name}_table", unary_table(node, before, after))
        return self.graph.call_function(qops.LUT, (self.operand(x, source), table)), fmt

    def move(self, node: fx.Node) -> tuple[fx.Node, str]:
        fmt = self.stored(node)
        qparams = self.qparams(node, fmt)
        args = fx.node.map_arg(node.args, lambda n: self._moved(n, fmt))
        if is_call(node, PAD):
            padded = (args[0], args[1], zero_point_of(qparams))
            return self.graph.call_function(PAD, padded), fmt
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self._moved(n, fmt))
        return self.graph.call_function(node.target, args, kwargs), fmt

    def _moved(self, node: fx.Node, fmt: str) -> fx.Node:
        is_tensor = self.kinds.get(node.name) is not Kind.SHAPE
        return self.operand(node, fmt) if is_tensor else self.raw(node)

    def pick(self, node: fx.Node) -> tuple[fx.Node, str]:
        source, index = node.args
        fmt = next(iter(self.made[source.name]))
        return self.graph.call_function(node.target, (self.raw(source), index)), fmt

    def concat(self, node: fx.Node) -> tuple[fx.Node, str]:
        fmt = self.stored(node)
        after = self.qparams(node, fmt)
        parts = []
        for part in node.args[0]:
            piece, before = self.operand(part, fmt), self.qparams(part, fmt)
            same = (scale_of(before), zero_point_of(before)) == (
                scale_of(after),
                zero_point_of(after),
            )
            parts.append(piece if same else self.convert(piece, before, after, storage(fmt)))
        args = (parts, *node.args[1:])
        return self.graph.call_function(aten.cat.default, args, dict(node.kwargs)), fmt

    def float_op(self, node: fx.Node) -> tuple[fx.Node, str]:
        def operand(n: fx.Node) -> fx.Node:
            return self.operand(n, "fp32") if self._is_float(n) else self.raw(n)

        args = fx.node.map_arg(node.args, operand)
        kwargs = fx.node.map_arg(node.kwargs, operand)
        new = self.graph.call_function(node.target, args, kwargs)
        self.floats.append(new.name)
        return new, "fp32"

    def _is_float(self, node: fx.Node) -> bool:
        entry = self.network.shapes.get(node.name)
        return entry is None or entry[1] == torch.float32

    def shape(self, node: fx.Node) -> tuple[fx.Node, str]:
        new = self.graph.node_copy(node, lambda n: self.raw(n))
        return new, "fp32"


_RULES: dict[Kind, Callable[[_Builder, fx.Node], tuple[fx.Node, str]]] = {
    Kind.SITE: _Builder.site,
    Kind.ADD: _Builder.add,
    Kind.MULTIPLY: _Builder.multiply,
    Kind.AFFINE: _Builder.affine,
    Kind.CLAMP: _Builder.clamp,
    Kind.AVERAGE: _Builder.average,
    Kind.MAX_POOL: _Builder.max_pool,
    Kind.TABLE: _Builder.table,
    Kind.MOVE: _Builder.move,
    Kind.PICK: _Builder.pick,
    Kind.CONCAT: _Builder.concat,
    Kind.ATTENTION: attention,
    Kind.FLOAT: _Builder.float_op,
    Kind.SHAPE: _Builder.shape,
}


def unary_table(node: fx.Node, before: QParams, after: QParams) -> Tensor:
    """Return the 256-entry u8 table of a unary node, computed in float64."""
    codes = torch.arange(256, dtype=torch.float64).clamp_max(before.spec.qmax)
    real = (codes - before.zero_point) * before.scale
    value = node.target(real, *node.args[1:], **node.kwargs)
    rounded = torch.round(value / after.scale) + after.zero_point
    return rounded.clamp(0, after.spec.qmax).to(torch.uint8)


def _codes_and_scale(
    weight: QuantizedWeight | Tensor, candidate: Candidate
) -> tuple[Tensor, Tensor]:
    if isinstance(weight, QuantizedWeight):
        return weight.codes, weight.scale
    return weight, torch.ones(weight.shape[0])


def _check_accumulator(site: Site, codes: Tensor, candidate: Candidate) -> None:
    inputs = codes[0].numel()
    if candidate.integer_compute and inputs > MAX_INPUTS:
        raise LoweringError(
            "the int32 accumulator could overflow",
            where=site.id,
            expected=f"at most {MAX_INPUTS} inputs for an output",
            found=str(inputs),
            remedy="constrain this site to fp32 or bf16",
        )


def _check_dynamic(site: Site, candidate: Candidate) -> None:
    if site.op != "linear" or candidate.activation_bits != 8:
        raise LoweringError(
            "no kernel quantizes these activations at run time",
            where=site.id,
            expected="a linear layer with 8-bit activations",
            found=f"{candidate.name} for {site.op}",
            remedy="choose a candidate without d",
        )


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))


def _keep_source(old: fx.Node, new: fx.Node) -> None:
    if "stack_trace" in old.meta:
        new.meta["stack_trace"] = old.meta["stack_trace"]
