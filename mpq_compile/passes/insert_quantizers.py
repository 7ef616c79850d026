"""The pass this project is named for: switchable quantizers at each site's weight, bias and input.

Changing an assignment flips the quantizers; nothing is traced again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from mpq_compile.errors import PlanError, nearest
from mpq_compile.passes.formats import quantizer_roots
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.network import Network
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import fake_quantize
from mpq_compile.quant.reference import fake_quantize_rows
from mpq_compile.types import Candidate


class _SiteQuantizer(nn.Module):
    """Knows its site and the candidate that it is switched to."""

    def __init__(self, network: Network, calibration: Calibration, site_id: str) -> None:
        super().__init__()
        self.candidate = Candidate.parse("fp32")
        self._where = network, calibration, site_id


class WeightQuantizer(_SiteQuantizer):
    """Returns the site's weight as its candidate rounds it, in float32."""

    def forward(self, weight: Tensor) -> Tensor:
        if self.candidate.weight_bits == 32:
            return weight
        if self.candidate.weight_bits == 16:
            return weight.bfloat16().float()
        return fitted_weight(*self._where, self.candidate).dequantize()


class BiasQuantizer(_SiteQuantizer):
    """Returns the site's bias with the shift that goes with its candidate, in float32."""

    def forward(self, bias: Tensor) -> Tensor:
        if self.candidate.is_float:
            return bias
        return fitted_bias(*self._where, self.candidate)


class ActivationQuantizer(nn.Module):
    """Rounds the site's input as its candidate reads it, in float32."""

    def __init__(self, calibration: Calibration, root: str) -> None:
        super().__init__()
        self.candidate = Candidate.parse("fp32")
        self._calibration = calibration
        self._root = root

    def forward(self, x: Tensor) -> Tensor:
        fmt = self.candidate.input_format
        if not x.is_floating_point():  # numbers of an embedding's rows
            return x
        if self.candidate.dynamic:
            return fake_quantize_rows(x)
        if fmt == "fp32":
            return x
        if fmt == "bf16":
            return x.bfloat16().float()
        return fake_quantize(
            x, self._calibration.qparams(self._root, self.candidate.activation_bits)
        )

    def straight_through(self, x: Tensor) -> Tensor:
        """Return the same, with the gradient of clipping alone: that of rounding is taken as 1."""
        rounded = self(x.detach())
        if not x.is_floating_point():
            return rounded
        if self.candidate.dynamic or self.candidate.input_format in ("fp32", "bf16"):
            return x + (rounded - x.detach())
        qparams = self._calibration.qparams(self._root, self.candidate.activation_bits)
        low = -qparams.zero_point * qparams.scale
        clipped = x.clamp(low, low + qparams.spec.qmax * qparams.scale)
        return clipped + (rounded - clipped.detach())


@dataclass(frozen=True, kw_only=True)
class InsertQuantizers:
    """Put an activation quantizer before every site, and those of weight and bias beside it."""

    network: Network
    calibration: Calibration
    name: str = "insert_quantizers"
    roots: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        roots = quantizer_roots(self.network, kinds(self.network, allow_float=True))
        by_name = {node.name: node for node in module.graph.nodes}
        for index, site in enumerate(self.network.sites):
            node = by_name[self.network.node_of[site.id]]
            x, weight, bias = node.args[:3]
            name = f"quantizer_{index}"
            where = self.network, self.calibration, site.id
            quantizers = {
                "input": ActivationQuantizer(self.calibration, roots[x.name]),
                "weight": WeightQuantizer(*where),
            }
            if bias is not None:
                quantizers["bias"] = BiasQuantizer(*where)
            module.add_submodule(name, nn.ModuleDict(quantizers))
            with module.graph.inserting_before(node):
                x = module.graph.call_module(f"{name}.input", (x,))
                weight = module.graph.call_module(f"{name}.weight", (weight,))
                if bias is not None:
                    bias = module.graph.call_module(f"{name}.bias", (bias,))
            node.args = (x, weight, bias, *node.args[3:])
        return module


def set_assignment(module: fx.GraphModule, network: Network, assignment: Mapping[str, str]) -> None:
    """Switch every quantizer: sites that ``assignment`` leaves out compute in fp32."""
    known = {site.id for site in network.sites}
    for site_id in assignment:
        if site_id not in known:
            raise PlanError(
                f"unknown site {site_id!r}",
                expected="a site of the network",
                found=repr(site_id),
                remedy=nearest(site_id, known),
            )
    for index, site in enumerate(network.sites):
        candidate = Candidate.parse(assignment.get(site.id, "fp32"))
        for quantizer in module.get_submodule(f"quantizer_{index}").values():
            quantizer.candidate = candidate
