"""Replace the float graph by the operators that run: integer sites, int8 tensors between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from mpq_compile.passes import materialize_site
from mpq_compile.passes import materialize_tensors as tensors
from mpq_compile.passes.base import add_constant, constant
from mpq_compile.passes.formats import native_formats, quantizer_roots, stored_formats
from mpq_compile.passes.kinds import Kind, kinds
from mpq_compile.passes.materialize_attention import attention
from mpq_compile.passes.materialized import Builder, Materialized, SiteRecord
from mpq_compile.passes.network import Network
from mpq_compile.quant import ops as qops
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.multipliers import bounds_of, f32, scale_of, zero_point_of
from mpq_compile.types import Candidate, QParams, format_bits, storage


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
        self.calibration = task.calibration
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
        self.masks: dict[str, fx.Node] = {}
        self.records: dict[str, SiteRecord] = {}
        self.floats: list[str] = []
        self.codes: dict[str, QParams] = {}
        self.origins: dict[str, str] = {}
        self.ranges: dict[tuple[str, int], QParams] = {}
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
            codes={name: qparams for name, qparams in self.codes.items() if name in kept},
            origins={name: origin for name, origin in self.origins.items() if name in kept},
            ranges=self.ranges,
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
            self.origins[new.name] = node.name
            self._note(new, self.qparams(node, fmt))

    # Operands

    def stored(self, node: fx.Node) -> str:
        """Format in which a tensor of the old graph is stored."""
        return self.formats[node.name]

    def qparams(self, node: fx.Node, fmt: str) -> QParams | None:
        """Qparams of a tensor in ``fmt``; None for float formats."""
        if storage(fmt) != "u8":
            return None
        key = (self.roots[node.name], format_bits(fmt))
        self.ranges[key] = self.calibration.qparams(*key)
        return self.ranges[key]

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

    def as_stored(self, node: fx.Node | None) -> tuple[fx.Node | None, QParams | None]:
        """The new node of old ``node`` in the format in which it is stored, with its qparams."""
        if node is None:
            return None, None
        fmt = self.stored(node)
        return self.operand(node, fmt), self.qparams(node, fmt)

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
        new = self.graph.call_function(qops.CONVERT, args)
        self._note(new, after)
        return new

    def _note(self, new: fx.Node, qparams: QParams | None) -> None:
        if qparams is not None:
            self.codes[new.name] = qparams

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


_RULES: dict[Kind, Callable[[Builder, fx.Node], tuple[fx.Node, str]]] = {
    Kind.SITE: materialize_site.site,
    Kind.EMBEDDING: materialize_site.embedding,
    Kind.ADD: tensors.add,
    Kind.MULTIPLY: tensors.multiply,
    Kind.AFFINE: tensors.affine,
    Kind.CLAMP: tensors.clamp,
    Kind.AVERAGE: tensors.average,
    Kind.MAX_POOL: tensors.max_pool,
    Kind.TABLE: tensors.table,
    Kind.MOVE: tensors.move,
    Kind.PICK: tensors.pick,
    Kind.CONCAT: tensors.concat,
    Kind.ATTENTION: attention,
    Kind.FLOAT: tensors.float_op,
    Kind.SHAPE: tensors.shape,
}


def _keep_source(old: fx.Node, new: fx.Node) -> None:
    if "stack_trace" in old.meta:
        new.meta["stack_trace"] = old.meta["stack_trace"]
