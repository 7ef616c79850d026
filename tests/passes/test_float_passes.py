"""Passes on the float graph: before, after, and equality with eager."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from graphs import after, assert_same, calls, captured, only, prepared
from operator_nets import CASES, NetCase
from torch import Tensor, nn

from mpq_compile.errors import CaptureError
from mpq_compile.passes import ops
from mpq_compile.passes.base import constant
from mpq_compile.passes.canonicalize import Canonicalize
from mpq_compile.passes.expand_scaled_sums import ExpandScaledSums
from mpq_compile.passes.fold_batchnorm import FoldBatchnorm
from mpq_compile.passes.fold_constants import FoldConstants
from mpq_compile.passes.remove_identity import RemoveIdentity

aten = torch.ops.aten
IMAGE = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    """A function of one image behind a convolution."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def lived_in(model: nn.Module) -> nn.Module:
    return NetCase(make=lambda: model, shapes=()).model()


# Batch norm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda bias: nn.Conv2d(4, 6, 3, bias=bias),
        lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias),
        lambda bias: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=bias),
        lambda bias: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias),
    ],
)
def test_batch_norm_folds_into_a_convolution(make, bias: bool, affine: bool) -> None:
    model = lived_in(nn.Sequential(make(bias), nn.BatchNorm2d(6, affine=affine)))
    module = after(captured(model, IMAGE).module, Canonicalize(), FoldBatchnorm())
    assert calls(module) == {"site_conv2d": 1}
    assert_same(model, module, [IMAGE])


def test_batch_norm_folds_into_a_linear_layer() -> None:
    model = lived_in(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    x = torch.randn(3, 5)
    module = after(captured(model, x).module, Canonicalize(), FoldBatchnorm())
    assert calls(module) == {"site_linear": 1}
    assert_same(model, module, [x])


def test_batch_norm_over_steps_does_not_fold_into_features() -> None:
    model = lived_in(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    x = torch.randn(3, 6, 5)  # as many steps as features
    module = after(captured(model, x).module, Canonicalize(), FoldBatchnorm())
    assert calls(module) == {"site_linear": 1, "channel_affine": 1}
    assert_same(model, module, [x])


class Shared(nn.Module):
    """A convolution whose result is read twice, and a batch norm on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x))
        return self.second(y) + y


def test_batch_norm_that_cannot_fold_becomes_an_affine() -> None:
    model = lived_in(Shared())
    module = after(captured(model, IMAGE).module, Canonicalize(), FoldBatchnorm())
    assert calls(module) == {"site_conv2d": 1, "channel_affine": 2, "add": 1}
    assert_same(model, module, [IMAGE])


def test_a_shared_convolution_is_folded_for_each_of_its_norms() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.conv(F.relu(self.a(self.conv(x)))))

    model = lived_in(Siamese())
    network = prepared(model, IMAGE)
    assert_same(model, network.module, [IMAGE])
    # One weight, read twice: folded in two ways, but with one choice of bits.
    assert [site.id for site in network.sites] == ["conv:conv2d#0", "conv:conv2d#1"]
    assert len({site.group for site in network.sites}) == 1


def test_batch_norm_without_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(CaptureError, match="running statistics"):
        prepared(model, IMAGE)


# Identities and constants


class Idle(nn.Module):
    """Nothing but identities around one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.same = nn.Conv2d(4, 4, 1), nn.Dropout(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x).contiguous()).clone().detach().float()
        return self.same(x[:, :, :])[..., :]


def test_identities_go() -> None:
    module = after(captured(Idle(), IMAGE).module, RemoveIdentity())
    assert calls(module) == {"conv2d": 1}
    model = Idle()
    assert_same(model.eval(), after(captured(model, IMAGE).module, RemoveIdentity()), [IMAGE])


def test_what_changes_something_stays() -> None:
    model = Function(lambda x: x[:, 1:, ::2].double().float())
    module = after(captured(model, IMAGE).module, RemoveIdentity())
    assert calls(module)["slice"] == 2 and calls(module)["to"] + calls(module)["_to_copy"] == 2
    assert_same(model, module, [IMAGE])


class Standardized(nn.Module):
    """Weight standardisation: the weight is computed from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        w = self.inner.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.inner.bias)


def test_constants_are_computed_once_and_keep_their_path() -> None:
    model = Standardized()
    module = after(captured(model, IMAGE).module, FoldConstants())
    assert calls(module) == {"conv2d": 1}
    assert_same(model, module, [IMAGE])
    assert [site.path for site in prepared(model, IMAGE).sites] == ["inner"]


# Canonical forms


@pytest.mark.parametrize(
    ("conv", "pads"),
    [
        (nn.Conv2d(4, 4, 3, padding=(1, 2)), (1, 2, 1, 2)),
        (nn.Conv2d(4, 4, (2, 5), padding="same"), (0, 2, 1, 2)),
        (nn.Conv2d(4, 4, 3, padding="same", dilation=2), (2, 2, 2, 2)),
        (nn.Conv2d(4, 4, 3, padding="valid"), (0, 0, 0, 0)),
    ],
)
def test_padding_has_one_form(conv: nn.Conv2d, pads: tuple[int, ...]) -> None:
    module = after(captured(conv, IMAGE).module, Canonicalize())
    assert tuple(only(module, ops.site_conv2d).args[5]) == pads
    assert_same(conv, module, [IMAGE])


class PaddedConv(nn.Module):
    """Explicit padding before a convolution."""

    def __init__(self, amounts: tuple[int, ...], value: float = 0.0, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.amounts, self.value = nn.Conv2d(4, 4, 3, padding=1), amounts, value
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.pad(x, self.amounts, value=self.value)
        return (self.conv(x), x) if self.twice else self.conv(x)


def test_zero_padding_moves_into_the_convolution() -> None:
    model = PaddedConv((1, 2, 0, 3))
    module = after(captured(model, IMAGE).module, Canonicalize())
    assert calls(module) == {"site_conv2d": 1}
    assert tuple(only(module, ops.site_conv2d).args[5]) == (1, 2, 4, 3)
    assert_same(model, module, [IMAGE])


@pytest.mark.parametrize(
    "model",
    [
        PaddedConv((1, 2, 0, 3), value=1.0),
        PaddedConv((1, -1, 0, 0)),
        PaddedConv((0, 0, 0, 0, 0, 0)),
        PaddedConv((1, 1), twice=True),
    ],
)
def test_other_padding_stays(model: PaddedConv) -> None:
    module = after(captured(model, IMAGE).module, Canonicalize())
    assert calls(module)["constant_pad_nd"] == 1
    assert_same(model, module, [IMAGE])


@pytest.mark.parametrize(
    "conv",
    [
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=1, output_padding=(1, 2)),
        nn.ConvTranspose2d(4, 6, (3, 2), groups=2, dilation=(1, 2), padding=(2, 0)),
        nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4),
        nn.ConvTranspose2d(4, 6, 1, padding=1),
    ],
)
def test_transposed_convolution_has_the_form_of_a_convolution(conv: nn.ConvTranspose2d) -> None:
    module = after(captured(conv, IMAGE).module, Canonicalize())
    assert calls(module) == {"site_conv2d": 1}
    assert_same(conv, module, [IMAGE])
    (site,) = prepared(conv, IMAGE).sites
    assert site.op == "conv_transpose2d" and site.out_channels == conv.out_channels


class Matrices(nn.Module):
    """Products with constant matrices, and one of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.v = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.b, x, self.w)
        y = torch.mm(y, self.v) @ self.v.t()
        return y[:, None] @ y[:, :, None]


def test_products_with_constants_are_linear_layers() -> None:
    model, x = Matrices(), torch.randn(3, 5)
    module = prepared(model, x).module
    assert calls(module) == {"site_linear": 3, "matmul": 1, "unsqueeze": 2}
    assert_same(model, module, [x])


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (F.relu, (0.0, ops.INF)),
        (F.relu6, (0.0, 6.0)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -2.0, 3.0), (-2.0, 3.0)),
        (lambda x: torch.clamp(x, min=-0.5), (-0.5, ops.INF)),
        (lambda x: x.clamp(max=0.5), (-ops.INF, 0.5)),
        (lambda x: F.relu(x.clone(), inplace=True), (0.0, ops.INF)),
        (lambda x: x.clone().clamp_(0, 1), (0.0, 1.0)),
    ],
)
def test_clamps_have_one_form(function, bounds: tuple[float, float]) -> None:
    model = Function(function)
    module = after(captured(model, IMAGE).module, RemoveIdentity(), Canonicalize())
    assert calls(module) == {"site_conv2d": 1, "clamp": 1}
    assert tuple(only(module, ops.clamp).args[1:]) == bounds
    assert_same(model, module, [IMAGE])


def test_a_clamp_by_a_tensor_is_left_alone() -> None:
    model = Function(lambda x: torch.clamp(x, min=x.mean()))
    module = after(captured(model, IMAGE).module, Canonicalize())
    assert calls(module)["clamp"] == 1 and calls(module)["mean"] == 1
    assert_same(model, module, [IMAGE])


def test_a_scaled_sum_is_left_alone() -> None:
    model = Function(lambda x: torch.add(x, x, alpha=2))
    module = after(captured(model, IMAGE).module, Canonicalize())
    assert only(module, aten.add.Tensor)
    assert_same(model, module, [IMAGE])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.add(x, F.relu(x), alpha=2),
        lambda x: torch.sub(x, F.relu(x), alpha=-0.5),
        lambda x: torch.add(x, 3.0, alpha=2),
        lambda x: torch.rsub(x, F.relu(x), alpha=3),
        lambda x: 2.0 - x,
    ],
)
def test_factors_of_a_sum_become_products(function) -> None:
    model = Function(function)
    module = after(captured(model, IMAGE).module, ExpandScaledSums())
    assert "rsub" not in calls(module)
    for node in module.graph.nodes:
        assert "alpha" not in node.kwargs
    assert_same(model, module, [IMAGE])


@pytest.mark.parametrize("name", ["mean", "sum"])
def test_a_reduction_of_everything_names_its_axes(name: str) -> None:
    model = Function(lambda x: x - getattr(x, name)())
    module = after(captured(model, IMAGE).module, Canonicalize())
    target = {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList}[name]
    assert only(module, target).args[1] == [0, 1, 2, 3]
    assert_same(model, module, [IMAGE])


def test_stack_is_a_concatenation() -> None:
    model = Function(lambda x: torch.stack([x, -x, x], dim=-1))
    module = after(captured(model, IMAGE).module, Canonicalize())
    assert calls(module) == {"site_conv2d": 1, "neg": 1, "unsqueeze": 3, "cat": 1}
    assert_same(model, module, [IMAGE])


# Epilogues


class Residual(nn.Module):
    """conv(x) and something else meet in a sum."""

    def __init__(self, swapped: bool, activation=F.relu) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.swapped, self.activation = swapped, activation

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z = self.b(y)
        return self.activation(x + z if self.swapped else z + x)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("activation", [F.relu, F.relu6, lambda x: torch.clamp(x, -1, 1)])
def test_residual_and_clamp_join_the_site(swapped: bool, activation) -> None:
    model = Residual(swapped, activation)
    module = prepared(model, IMAGE).module
    assert calls(module) == {"site_conv2d": 2}
    assert_same(model, module, [IMAGE])


class TwoSites(nn.Module):
    """Two convolutions meet: the later takes the earlier one's result."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.a, self.b, self.swapped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), swapped

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        return F.relu(z + y if self.swapped else y + z)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_sites_the_later_takes_the_sum(swapped: bool) -> None:
    model = TwoSites(swapped)
    module = prepared(model, IMAGE).module
    assert calls(module) == {"site_conv2d": 2}
    first, second = [n for n in module.graph.nodes if n.op == "call_function"]
    assert first.args[3] is None and second.args[3] is first
    assert (first.args[-2:], second.args[-2:]) == ((-ops.INF, ops.INF), (0.0, ops.INF))
    assert_same(model, module, [IMAGE])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.relu(x) + x,  # the site is read twice
        lambda x: x + x,
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: torch.tanh(x) + 1.0,
    ],
)
def test_what_does_not_fit_stays_apart(function) -> None:
    model = Function(function)
    module = prepared(model, IMAGE).module
    assert only(module, ops.site_conv2d).args[3] is None
    assert calls(module)["add"] == 1
    assert_same(model, module, [IMAGE])


def test_a_sum_that_widens_the_site_stays_apart() -> None:
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    module = prepared(Widened(), IMAGE).module
    assert calls(module) == {"site_conv2d": 1, "add": 1}


def test_a_second_clamp_stays() -> None:
    model = Function(lambda x: torch.clamp(F.relu(x), max=0.5))
    module = prepared(model, IMAGE).module
    assert calls(module) == {"site_conv2d": 1, "clamp": 1}
    assert_same(model, module, [IMAGE])


# The composition


@pytest.mark.parametrize("name", CASES)
def test_preparation_keeps_what_the_network_computes(name: str) -> None:
    case = CASES[name]
    model = case.model()
    network = prepared(model, *case.inputs(1))
    assert_same(model, network.module, case.inputs(1, seed=5))
    assert_same(model, network.module, case.inputs(4, seed=6))
    assert "batch_norm" not in calls(network.module)


def test_dump_writes_the_graph_after_each_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_DUMP", str(tmp_path / "dump"))
    after(captured(Idle(), IMAGE).module, RemoveIdentity(), Canonicalize())
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == ["00_remove_identity.txt", "01_canonicalize.txt"]
    assert "site_conv2d" in (tmp_path / "dump" / names[1]).read_text()


def test_constants_of_a_graph_are_tensors() -> None:
    module = captured(nn.Conv2d(4, 4, 1), IMAGE).module
    node = only(module, aten.conv2d.default)
    assert isinstance(constant(module, node.args[1]), Tensor)
    assert constant(module, node.args[0]) is None and constant(module, None) is None
