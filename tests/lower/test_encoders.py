"""Encoder layers as whole networks: attention and norms beside their oracle, formats, copies."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.lower.lowering import Lowered, lower
from mpq_compile.passes.base import is_call
from mpq_compile.passes.materialize import materialize
from mpq_compile.passes.materialized import Materialized
from mpq_compile.passes.network import prepare
from mpq_compile.quant import ops as qops
from mpq_compile.selfcheck import agreement_decibels
from mpq_compile.session import Session

aten = torch.ops.aten
LEAST_DECIBELS = {"w8a8": 45.0, "bf16": 45.0, "fp32": 100.0}


MASKS = ["none", "causal", "float", "bool", "rows", "all", "computed_rows"]


class Attends(nn.Module):
    """Multi-head attention; ``joined`` projects q, k and v at once, ``kind`` names the mask."""

    def __init__(self, kind: str = "none", joined: bool = False, width: int = 40) -> None:
        super().__init__()
        self.kind, self.joined, self.width = kind, joined, width
        self.qkv = nn.Linear(width, 3 * width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.register_buffer("bias", torch.randn(2, 9, 9))
        self.register_buffer("seen", torch.rand(9, 9) > 0.4)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        if self.joined:
            parts = self.qkv(x).view(batch, rows, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (
                part(x).view(batch, rows, 2, width // 2).transpose(1, 2)
                for part in (self.q, self.k, self.v)
            )
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(batch, rows, width))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kind == "written":
            return torch.softmax(q @ k.mT * 0.2 + self.bias, -1) @ v
        masks = {
            "float": self.bias,
            "bool": self.seen,
            # One value for all keys of a row, or of all rows.
            "rows": self.bias[:, :, :1],
            "all": self.bias[:, :1, :1],
            "computed_rows": q[..., :1],
        }
        mask = masks.get(self.kind)
        scale = 0.4 if self.kind == "scaled" else None
        causal = self.kind == "causal"
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)


class Layer(nn.Module):
    """One encoder layer, norms after (as BERT) or before (as ViT) the residual sums."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.attention = first, Attends(joined=first)
        self.norm1, self.norm2 = nn.LayerNorm(40), nn.LayerNorm(40)
        self.up, self.down = nn.Linear(40, 72), nn.Linear(72, 40)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attention(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def encoder(first: bool) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(Layer(first), Layer(first), nn.Linear(40, 6)).eval()


def inputs(batch: int = 6, rows: int = 9) -> Tensor:
    return torch.randn(batch, rows, 40, generator=torch.Generator().manual_seed(1))


def lowered(model: nn.Module, x: Tensor, candidate: str) -> tuple[Materialized, Lowered]:
    session = Session(model.eval(), x[:1], [x])
    assignment = {site.id: candidate for site in session.network.sites}
    graph = materialize(session.network, session.calibration_for({}), assignment)
    return graph, lower(graph, [x[:1]], detect_tier(), 2)


def kernels(low: Lowered) -> Counter[str]:
    """Count the functions of a module by the first word of their names."""
    names = [name.name_hint for name in low.module.functions if name.name_hint.startswith("k_")]
    return Counter(name.split("_")[1] for name in names)


@pytest.mark.parametrize("kind", [*MASKS, "scaled", "written"])
def test_integer_attention_equals_the_oracle(kind: str) -> None:
    torch.manual_seed(2)
    model, x = Attends(kind).eval(), inputs()
    network = mpq.assign(model, x[:1], [x], "w8a8")
    assert torch.equal(network(x), network.reference(x))
    with torch.no_grad():
        assert agreement_decibels(network(x), model(x)) > 25
    floats = [row.kernel for row in network.audit if row.requested == "float"]
    assert floats == (["TVM: aten.where.self"] if kind == "bool" else [])


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 9, 1, dtype=torch.bool), torch.zeros(9, 9)])
def test_a_mask_that_hides_nothing_is_none(mask: Tensor) -> None:
    model, x = Attends("bool").eval(), inputs()
    model.seen = mask
    found = []
    for model.kind in ("bool", "none"):
        network = mpq.assign(model, x[:1], [x], "fp32")
        assert agreement_decibels(network(x), network.reference(x)) > LEAST_DECIBELS["fp32"]
        found += [row.kernel for row in network.audit if row.kernel.startswith("attention/")]
    assert len(found) == 2 and found[0] == found[1]


@pytest.mark.parametrize("candidate", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", MASKS)
def test_float_attention_is_near_the_oracle(kind: str, candidate: str) -> None:
    torch.manual_seed(2)
    model, x = Attends(kind, joined=True).eval(), inputs()
    network = mpq.assign(model, x[:1], [x], candidate)
    found, expected = network(x), network.reference(x)
    assert agreement_decibels(found, expected) > LEAST_DECIBELS[candidate]
    (row,) = [row for row in network.audit if row.kernel.startswith("attention/")]
    assert f"/{candidate}-{candidate}/" in row.kernel


@pytest.mark.parametrize("candidate", ["w8a8", "bf16", "fp32"])
@pytest.mark.parametrize("first", [True, False])
def test_encoders_are_near_the_oracle(first: bool, candidate: str) -> None:
    model, x = encoder(first), inputs()
    network = mpq.assign(model, x[:1], [x], candidate)
    found, expected = network(x), network.reference(x)
    assert agreement_decibels(found, expected) > LEAST_DECIBELS[candidate]


@pytest.mark.parametrize("joined", [True, False])
def test_nothing_is_copied_around_attention(joined: bool) -> None:
    _, low = lowered(Attends(joined=joined), inputs(), "w8a8")
    assert set(kernels(low)) == {"convert", "linear", "attention"}


def test_norms_convert_what_they_write() -> None:
    graph, low = lowered(encoder(False), inputs(), "w8a8")
    converts = [node for node in graph.module.graph.nodes if is_call(node, qops.CONVERT)]
    readers = [node for node in converts if is_call(node.args[0], aten.layer_norm.default)]
    assert len(readers) == 4  # codes for the linears, while float goes to the residual sums
    assert kernels(low)["layernorm"] == 2  # the last norm has no residual behind it
    assert kernels(low)["convert"] == 1  # the input


def test_a_float_residual_is_not_rounded_for_its_neighbour() -> None:
    graph, _ = lowered(encoder(False), inputs(), "w8a8")
    residuals = [
        node.args[4]
        for node in graph.module.graph.nodes
        if is_call(node, qops.QLINEAR) and node.args[4] is not None
    ]
    norms = [node for node in residuals if is_call(node, aten.layer_norm.default)]
    assert len(residuals) == 4 and len(norms) == 3  # the first one adds the input


class ChannelNorm(nn.Module):
    """A ConvNeXt block: the norm over channels reads the convolution's output as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_channels_last_is_not_copied_for_a_norm() -> None:
    torch.manual_seed(0)
    model, x = ChannelNorm().eval(), torch.randn(4, 8, 6, 5)
    network = mpq.assign(model, x[:1], [x], "w8a8")
    assert agreement_decibels(network(x), network.reference(x)) > 45
    _, low = lowered(model, x, "w8a8")
    assert set(kernels(low)) == {"to", "conv", "layernorm", "linear"}
    names = [name.name_hint for name in low.module.functions]
    assert sum(name.startswith("k_to_nhwc") for name in names) == 1  # the input


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.RMSNorm(40), nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x))


def test_rms_norm() -> None:
    torch.manual_seed(0)
    model, x = Rms().eval(), inputs()
    network = mpq.assign(model, x[:1], [x], "w8a8")
    assert agreement_decibels(network(x), network.reference(x)) > 45
    assert [row.kernel for row in network.audit if row.requested == "float"] == [
        "rmsnorm/9x40/e1.19209e-07/10/fp32-u8"
    ]


def test_shapes_that_the_kernel_does_not_take_run_on_tvm() -> None:
    class Shared(nn.Module):  # one head of keys for all heads of queries
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(40, 40), nn.Linear(40, 20)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).unflatten(2, (2, 20)).transpose(1, 2)
            k = self.k(x).unflatten(2, (1, 20)).transpose(1, 2)
            return F.scaled_dot_product_attention(q, k, k)

    torch.manual_seed(0)
    model, x = Shared().eval(), inputs()
    captured = capture(model, (x[:1],))
    assert prepare(captured).sites
    network = mpq.assign(model, x[:1], [x], "w8a8")
    assert agreement_decibels(network(x), network.reference(x)) > 45
