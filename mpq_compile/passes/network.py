"""The prepared network: canonical float graph, its sites, its shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from mpq_compile.capture import CapturedGraph, source_line
from mpq_compile.passes import ops
from mpq_compile.passes.base import constant, is_call, run_passes, value_shapes
from mpq_compile.passes.batch_indices import BatchIndices
from mpq_compile.passes.cache_writes import CacheWrites
from mpq_compile.passes.canonicalize import Canonicalize
from mpq_compile.passes.expand_composites import ExpandComposites
from mpq_compile.passes.expand_scaled_sums import ExpandScaledSums
from mpq_compile.passes.fills import Fills
from mpq_compile.passes.fold_batchnorm import FoldBatchnorm, NormStatistics
from mpq_compile.passes.fold_constants import FoldConstants
from mpq_compile.passes.fold_scale import FoldScale
from mpq_compile.passes.fold_shared_heads import FoldSharedHeads
from mpq_compile.passes.fuse_attention import FuseAttention
from mpq_compile.passes.fuse_epilogues import FuseEpilogues, Shapes
from mpq_compile.passes.fuse_rms_norm import FuseRmsNorm
from mpq_compile.passes.fuse_rotary import FuseRotary
from mpq_compile.passes.index_forms import IndexForms
from mpq_compile.passes.lift_one_dimension import LiftOneDimension
from mpq_compile.passes.lift_volumes import LiftVolumes
from mpq_compile.passes.remove_identity import RemoveIdentity
from mpq_compile.passes.sink_expands import SinkExpands
from mpq_compile.passes.views_as_reshapes import ViewsAsReshapes
from mpq_compile.quant.weights import QuantizedWeight, quantize_weight, weight_spec
from mpq_compile.types import Candidate, QSpec, Site

_DERIVED = re.compile(r"(_folded|_transposed|_lifted)\w*$")
_WEIGHT_SUFFIX = re.compile(
    r"(\.parametrizations)?\.?(in_proj_)?(weight)?((\.|^)folded_\w+|((_folded|_transposed|_lifted)\w*)*)$"
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to be quantized.

    Args:
        captured: Where it came from.
        module: Canonical float graph (``passes.ops`` and ATen).
        sites: In order of execution.
        node_of: Site id to node name in ``module``.
        shapes: Node name to shape and dtype, for the example inputs.
        statistics: What batch norms knew of a site's outputs, by node name; none where none folded.
    """

    captured: CapturedGraph
    module: fx.GraphModule
    sites: tuple[Site, ...]
    node_of: Mapping[str, str]
    shapes: Shapes = field(repr=False)
    statistics: Mapping[str, NormStatistics] = field(default_factory=dict, repr=False)
    _rounded: dict[tuple[str, QSpec], QuantizedWeight] = field(default_factory=dict, repr=False)

    @property
    def site_of(self) -> dict[str, Site]:
        """Node name to site."""
        by_id = {site.id: site for site in self.sites}
        return {node: by_id[site] for site, node in self.node_of.items()}

    @cached_property
    def owner_of(self) -> dict[str, str]:
        """Site id to the first site that reads the same weight: often the site itself."""
        return {site.id: site.shared or site.id for site in self.sites}

    @cached_property
    def scale_owner_of(self) -> dict[str, str]:
        """Site id to the first site that multiplies by the same weight: they share its scales.

        An embedding has scales of its own, one for each row.
        """
        first: dict[str, str] = {}
        return {
            site.id: first.setdefault(self.owner_of[site.id], site.id)
            if site.multiplies
            else site.id
            for site in self.sites
        }

    def node(self, name: str) -> fx.Node:
        """Return the node of that name."""
        return next(node for node in self.module.graph.nodes if node.name == name)

    def weight(self, site_id: str) -> Tensor:
        """Return the float weight of a site, batch norm folded in."""
        weight = constant(self.module, self.node(self.node_of[site_id]).args[1])
        assert weight is not None
        return weight

    def bias(self, site_id: str) -> Tensor:
        """Return the float bias of a site, float32 [N]; zeros where it has none."""
        bias = constant(self.module, self.node(self.node_of[site_id]).args[2])
        return torch.zeros(self.weight(site_id).shape[0]) if bias is None else bias.float()

    def constants(self) -> dict[str, Tensor | None]:
        """Return every constant of the graph, by name: weights, biases, tables."""
        nodes = [node for node in self.module.graph.nodes if node.op == "get_attr"]
        return {str(node.target): constant(self.module, node) for node in nodes}

    def biased(self, site_id: str) -> bool:
        """Tell whether a site has a bias that is stored: one of zeros is not, and stays zero."""
        return bool(self.bias(site_id).any())

    def rounded(self, site_id: str, candidate: Candidate) -> QuantizedWeight:
        """Return a site's weight rounded to nearest; computed once for each width and grouping."""
        spec = weight_spec(candidate)
        if (site_id, spec) not in self._rounded:
            self._rounded[site_id, spec] = quantize_weight(self.weight(site_id), spec)
        return self._rounded[site_id, spec]


def prepare(captured: CapturedGraph) -> Network:
    """Run the float passes and find the sites."""
    folded: dict[str, NormStatistics] = {}
    module = run_passes(
        captured.module,
        [
            ViewsAsReshapes(),
            RemoveIdentity(),
            ExpandScaledSums(),
            Fills(),
            FoldConstants(),
            BatchIndices(),
            SinkExpands(),
            ExpandComposites(),
            CacheWrites(),
            IndexForms(),
            LiftOneDimension(),
            LiftVolumes(),
            Canonicalize(),
            FoldBatchnorm(statistics=folded),
            FoldScale(statistics=folded),
        ],
    )
    shapes: Shapes = value_shapes(module, captured.example_inputs)  # type: ignore[assignment]
    module = run_passes(
        module,
        [FuseAttention(shapes=shapes), FuseRmsNorm(shapes=shapes), FuseRotary(shapes=shapes)],
    )
    shapes = value_shapes(module, captured.example_inputs)  # type: ignore[assignment]
    module = run_passes(module, [FoldSharedHeads(shapes=shapes), FuseEpilogues(shapes=shapes)])
    shapes = value_shapes(module, captured.example_inputs)  # type: ignore[assignment]
    nodes = [node for node in module.graph.nodes if is_call(node, *ops.ALL_SITE_OPS)]
    node_of: dict[str, str] = {}
    sites = []
    seen = {stem: count - 1 for stem, count in captured.met.items()}
    for node in nodes:
        site = _site(module, node, shapes, seen)
        sites.append(site)
        node_of[site.id] = node.name
    weights = {node.name: str(node.args[1].target) for node in nodes}
    values = [constant(module, node.args[1]) for node in nodes]
    return Network(
        captured=captured,
        module=module,
        sites=tuple(with_shared(sites, values)),
        node_of=node_of,
        shapes=shapes,
        statistics={name: folded[weight] for name, weight in weights.items() if weight in folded},
    )


def _site(module: fx.GraphModule, node: fx.Node, shapes: Shapes, seen: dict[str, int]) -> Site:
    weight_node = node.args[1]
    weight = constant(module, weight_node)
    assert isinstance(weight_node, fx.Node) and weight is not None
    kind = _operator(node)
    path = site_path(str(weight_node.target)) or node.name
    stem = f"{path}:{kind}"
    seen[stem] = seen.get(stem, -1) + 1
    groups = int(node.args[7]) if is_call(node, ops.site_conv2d) else 1
    output_shape = shapes[node.name][0]
    macs = _macs(node, kind, weight, output_shape, shapes)
    return Site(
        id=f"{stem}#{seen[stem]}",
        op=kind,  # type: ignore[arg-type]
        weight_shape=_torch_shape(weight, kind, groups),
        input_shape=shapes[node.args[0].name][0],
        output_shape=output_shape,
        macs=macs,
        # One weight read twice has one set of bits.
        group=_DERIVED.sub("", str(weight_node.target)),
        groups=groups,
        source=source_line(node),
    )


def with_shared(sites: Sequence[Site], weights: Sequence[Tensor | None]) -> Iterator[Site]:
    """Yield sites that know which one before them stores their weight.

    Weights that were derived from one are the same where they are equal: not where other norms
    were folded into them.
    """
    readers: dict[str, list[tuple[str, Tensor]]] = {}
    for site, weight in zip(sites, weights, strict=True):
        assert weight is not None
        before = readers.setdefault(site.group, [])
        shared = next((name for name, other in before if torch.equal(other, weight)), "")
        if not shared:
            before.append((site.id, weight))
        yield replace(site, shared=shared)


def _torch_shape(weight: Tensor, kind: str, groups: int) -> tuple[int, ...]:
    """[N, C/g, …] of the canonical graph → [C, N/g, …] where PyTorch stores it so."""
    outputs, inputs, *rest = weight.shape
    if kind != "conv_transpose2d":
        return tuple(weight.shape)
    return (inputs * groups, outputs // groups, *rest)


def site_path(weight_name: str) -> str:
    """Return the module path of a parameter: ``layer1.0.conv1.weight`` → ``layer1.0.conv1``.

    Names differ between exporters ("L['self'].conv1.weight"); only the path is kept.
    """
    name = re.sub(r"L\['self'\]\.", "", weight_name)
    return _WEIGHT_SUFFIX.sub("", name).strip(".")


def _operator(node: fx.Node) -> str:
    if is_call(node, ops.site_linear):
        return "linear"
    if is_call(node, ops.site_embedding):
        return "embedding"
    leaf = str(node.args[1].target).rpartition(".")[2]
    transposed = "_transposed" in leaf
    return "conv_transpose2d" if transposed else "conv2d"


def _macs(
    node: fx.Node, kind: str, weight: torch.Tensor, output: tuple[int, ...], shapes: Shapes
) -> int:
    if kind == "embedding":
        return math.prod(output)  # each value meets the scale of its row
    if kind == "conv_transpose2d":
        # Each input cell meets each weight once; the zeros between cells are no work.
        batch, _, height, width = shapes[node.args[0].name][0]
        return weight.numel() * batch * height * width
    positions = 1
    for index, size in enumerate(output):
        if kind == "linear" and index == len(output) - 1:
            continue
        if kind != "linear" and index == 1:
            continue
        positions *= size
    return weight.numel() * positions
