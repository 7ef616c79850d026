"""Sites: stable names, shapes, counts, and ties of shared weights."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from graphs import prepared
from operator_nets import CASES
from torch import Tensor, nn

from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare, site_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("L['self'].conv1.weight", "conv1"),
        ("conv1.weight_folded", "conv1"),
        ("up.weight_transposed_folded_2", "up"),
        ("inner.folded_div", "inner"),
        ("attn.in_proj_weight", "attn"),
        ("conv.parametrizations.weight.folded_mul", "conv"),
        ("block.matrix", "block.matrix"),
        ("weight", ""),
    ],
)
def test_paths_come_from_weight_names(name: str, path: str) -> None:
    assert site_path(name) == path


def test_names_follow_modules_and_occurrences() -> None:
    case = CASES["mobile"]
    sites = prepared(case.model(), *case.inputs(1)).sites
    assert [site.id for site in sites] == [
        "stem.0:conv2d#0",
        "expand.0:conv2d#0",
        "spatial.0:conv2d#0",
        "down:conv2d#0",
        "up:conv2d#0",
        "project.0:conv2d#0",
        "fc:linear#0",
    ]
    assert [site.depthwise for site in sites] == [False, False, True] + [False] * 4
    assert "operator_nets.py" in sites[0].source


@pytest.mark.parametrize("name", ["mobile", "tied", "attention", "linears"])
def test_names_are_the_same_every_time(name: str) -> None:
    case = CASES[name]
    first = prepared(case.model(), *case.inputs(1))
    again = prepared(case.model(), *case.inputs(1))
    assert first.sites == again.sites
    assert len({site.id for site in first.sites}) == len(first.sites)


def test_names_survive_export_to_a_file() -> None:
    case = CASES["mobile"]
    model, inputs = case.model(), case.inputs(2)
    stream = io.BytesIO()
    torch.export.save(torch.export.export(model, inputs), stream)
    stream.seek(0)
    loaded = prepare(capture(torch.export.load(stream)))
    assert [s.id for s in loaded.sites] == [s.id for s in prepared(model, *inputs).sites]


def test_shapes_and_macs() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2),
        nn.Linear(6, 5),
    )
    sites = prepared(model, torch.randn(3, 4, 5, 6)).sites
    assert [site.op for site in sites] == ["conv2d", "conv_transpose2d", "linear"]
    assert [site.weight_shape for site in sites] == [(6, 2, 3, 3), (6, 4, 2, 2), (5, 6)]
    assert [site.out_channels for site in sites] == [6, 8, 5]
    assert [site.groups for site in sites] == [2, 2, 1]
    assert sites[0].input_shape == (3, 4, 5, 6) and sites[0].output_shape == (3, 6, 3, 3)
    assert sites[0].macs == 6 * 2 * 9 * 3 * 3 * 3
    assert sites[1].macs == 6 * 4 * 4 * 3 * 3 * 3
    assert sites[2].macs == 5 * 6 * 3 * 8 * 6


def test_a_weight_that_is_read_twice_ties_its_sites() -> None:
    case = CASES["tied"]
    sites = prepared(case.model(), *case.inputs(1)).sites
    assert [site.id for site in sites] == [
        "shared:linear#0",
        "shared:linear#1",
        "last:linear#0",
    ]
    assert sites[0].group == sites[1].group != sites[2].group


def test_parameters_under_two_names_are_tied() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))

    sites = prepared(Alias(), torch.randn(2, 6)).sites
    assert sites[0].group == sites[1].group


def test_a_module_named_transposed_is_no_transposed_convolution() -> None:
    model = nn.ModuleDict({"conv_transposed": nn.Conv2d(3, 4, 1)})
    model.forward = lambda x: model["conv_transposed"](x)  # type: ignore[method-assign]
    (site,) = prepared(model, torch.randn(1, 3, 4, 4)).sites
    assert site.op == "conv2d"
