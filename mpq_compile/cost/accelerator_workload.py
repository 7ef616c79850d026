"""One layer as the author of an accelerator sees it: what ``measure(workload)`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpq_compile.cost.analytic import weight_bytes
from mpq_compile.cost.profile import operator_name
from mpq_compile.types import Candidate, Site

if TYPE_CHECKING:
    from mpq_compile.passes.network import Network


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A layer to generate and to time. Shapes and geometry are PyTorch's.

    The layer reads its input, writes its output and has its weights packed at their true bits.
    Activation functions, residual additions and pooling around it are taken to be free.

    Args:
        operator: ``conv2d``, ``depthwise_conv2d``, ``conv_transpose2d`` or ``linear``.
        candidate: Name of the candidate, such as ``w4a8``.
        input_shape: [B, C, H, W], or [..., K] for a linear layer.
        weight_shape: [N, C/groups, kh, kw], [C, N/groups, kh, kw] where transposed, or [N, K].
        output_shape: [B, N, H, W], or [..., N].
        stride: Rows and columns; (1, 1) for a linear layer, as are dilation and groups.
        padding: (top, left, bottom, right). A convolution adds so many zeros, a transposed one
            cuts so many cells off; negative where it is the other way round.
        dilation: Rows and columns.
        groups: Groups of channels.
        macs: Multiply-accumulates.
        weight_bits: Bits of a weight; 16 and 32 for bf16 and fp32.
        activation_bits: Bits of a cell of the input.
        group_size: Input features that share a weight scale; None for one scale per channel.
        dynamic: True where the input is float32 and quantized by rows when it arrives.
        weight_bytes: Bytes of the packed weights with their float32 scales.
    """

    operator: str
    candidate: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    macs: int
    weight_bits: int
    activation_bits: int
    group_size: int | None = None
    dynamic: bool = False
    weight_bytes: int

    @property
    def key(self) -> str:
        """Its shapes and geometry in one word, under which its time is stored."""
        shapes = (self.input_shape, self.weight_shape, self.output_shape)
        geometry = (self.stride, self.padding, self.dilation)
        words = [*map(_word, shapes), *map(_word, geometry), f"g{self.groups}"]
        return "_".join(words)

    def __str__(self) -> str:
        """Name it in messages: operator, candidate, shapes."""
        weight, given, result = map(_word, (self.weight_shape, self.input_shape, self.output_shape))
        return f"{self.operator} {self.candidate}, weight {weight}, {given} to {result}"


def _word(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def accelerator_workload(network: Network, site: Site, candidate: Candidate) -> Workload:
    """Return the workload of a site with a candidate."""
    return Workload(
        operator=operator_name(site.op, site.depthwise),
        candidate=candidate.name,
        input_shape=tuple(site.input_shape),
        weight_shape=tuple(site.weight_shape),
        output_shape=tuple(site.output_shape),
        macs=site.macs,
        weight_bits=candidate.weight_bits,
        activation_bits=candidate.activation_bits,
        group_size=candidate.group_size,
        dynamic=candidate.dynamic,
        weight_bytes=weight_bytes(site, candidate),
        **_geometry(network, site),
    )


def _geometry(network: Network, site: Site) -> dict[str, Any]:
    """Return stride, padding, dilation and groups; the graph holds transposed ones as spread."""
    if site.op in ("linear", "embedding"):
        return {}
    arguments: Any = network.node(network.node_of[site.id]).args
    stride, padding, dilation, groups, spread = arguments[4:9]
    if site.op == "conv_transpose2d":
        reach = [d * (k - 1) for d, k in zip(dilation, site.weight_shape[2:], strict=True)]
        stride = spread
        padding = [size - pad for size, pad in zip(reach * 2, padding, strict=True)]
    return {
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
    }
