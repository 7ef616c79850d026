"""Networks exported by PyTorch come back: the same outputs, sites and codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx_files import export, small
from recurrent_nets import Recurrent, TimeFirst
from shared_nets import NAMES, data_folder, load_net
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.session import Session

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def imported(model: nn.Module, x: Tensor, path: Path, **options: bool) -> Network:
    """Return the network of an exported file, its outputs checked."""
    captured = capture(export(model, x[:1], path, **options))
    inputs = x if captured.dynamic_batch else x[: len(captured.example_inputs[0])]
    with torch.no_grad():
        torch.testing.assert_close(captured.module(inputs)[0], model(inputs), rtol=1e-4, atol=1e-5)
    return prepare(captured)


def sites(network: Network) -> list[tuple[str, tuple[int, ...]]]:
    return [(site.id, site.weight_shape) for site in network.sites]


@pytest.mark.parametrize("free", [True, False])
def test_a_convolutional_network(tmp_path: Path, free: bool) -> None:
    found = imported(small(), X, tmp_path / "net.onnx", free=free)
    assert found.captured.dynamic_batch
    assert found.captured.example_inputs[0].shape == (1, 3, 8, 8)
    assert sites(found) == sites(prepare(capture(small(), X[:1])))


def test_sites_say_the_node_they_are_from(tmp_path: Path) -> None:
    network = imported(small(), X, tmp_path / "net.onnx")
    assert "net.onnx" in network.sites[0].source and "/stem/Conv" in network.sites[0].source


def test_codes_are_those_of_the_module(tmp_path: Path) -> None:
    path = export(small(), X[:1], tmp_path / "net.onnx")
    session, same = (Session(m, X[:1], [X], "bit_serial") for m in (path, small()))
    assignment = {site.id: "w8a8" for site in session.network.sites}
    found, expected = session.reference(assignment), same.reference(assignment)
    with torch.no_grad():
        torch.testing.assert_close(found(X), expected(X), rtol=0, atol=1e-5)


def test_an_encoder(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    x = torch.randn(4, 5, 16)
    found = imported(layer.eval(), x, tmp_path / "net.onnx", dynamo=True)
    expected = ["self_attn", "self_attn.out_proj", "linear1", "linear2"]
    assert [site.path for site in found.sites] == expected


@pytest.mark.parametrize("make", [Recurrent, TimeFirst])
def test_recurrent_layers(tmp_path: Path, make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    shape = (1, 6, 12) if make is Recurrent else (1, 1, 8, 10)
    x = torch.randn(shape)
    captured = capture(export(model, x, tmp_path / "net.onnx", free=False))
    with torch.no_grad():
        expected = pytree.tree_leaves(model(x))
    for found, wanted in zip(captured.module(x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    network, same = prepare(captured), prepare(capture(model, x))
    assert sites(network) == sites(same)
    assert network.owner_of == same.owner_of


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_with_a_free_batch(tmp_path: Path, layer: type[nn.Module]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer(12, 8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Last().eval(), torch.randn(4, 6, 12)
    found = imported(model, x, tmp_path / "net.onnx", free=True)
    assert sites(found) == sites(prepare(capture(model, x[:1])))


@pytest.mark.skipif(not data_folder().is_dir(), reason="the shared networks are not there")
@pytest.mark.parametrize("name", NAMES)
def test_pretrained_networks(tmp_path: Path, name: str) -> None:
    net = load_net(name, evaluation=4, calibration=4)
    found = imported(net.model, net.images, tmp_path / f"{name}.onnx")
    assert sites(found) == sites(prepare(capture(net.model, net.example)))
