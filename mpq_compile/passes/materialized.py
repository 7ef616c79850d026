"""The graph that is lowered, what its sites were given, and what a rule builds it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, fx

from mpq_compile.passes.kinds import Kind
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import Candidate, QParams, Site


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
        codes: What the codes of a node's tensor mean, by node name; float tensors have no entry.
        origins: Node name to the node of the float graph that it computes.
        ranges: Qparams that were used, by node name of the float graph and bits.
    """

    module: fx.GraphModule
    records: Mapping[str, SiteRecord]
    network: Network
    formats: Mapping[str, str]
    floats: Sequence[str]
    codes: Mapping[str, QParams]
    origins: Mapping[str, str]
    ranges: Mapping[tuple[str, int], QParams]


class Builder(Protocol):
    """What a rule may ask of the materializer."""

    network: Network
    calibration: Calibration
    graph: fx.Graph
    kinds: dict[str, Kind]
    candidates: dict[str, Candidate]
    native: dict[str, str]
    made: dict[str, dict[str, fx.Node]]
    rows: dict[str, tuple[fx.Node, ...]]
    masks: dict[str, fx.Node]
    records: dict[str, SiteRecord]
    floats: list[str]
    codes: dict[str, QParams]

    def stored(self, node: fx.Node) -> str: ...

    def qparams(self, node: fx.Node, fmt: str) -> QParams | None: ...

    def operand(self, node: fx.Node, fmt: str) -> fx.Node: ...

    def as_stored(self, node: fx.Node | None) -> tuple[fx.Node | None, QParams | None]: ...

    def convert(
        self,
        source: fx.Node,
        before: QParams | None,
        after: QParams | None,
        out: str,
        bounds: tuple[float, float] | None = None,
    ) -> fx.Node: ...

    def raw(self, node: fx.Node) -> fx.Node: ...

    def attribute(self, name: str, value: Tensor) -> fx.Node: ...
