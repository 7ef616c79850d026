"""Encodings: what is written, and that the same network comes back from it, bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.pipeline import assign
from mpq_compile.runtime.network import CompiledNetwork


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.head = nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.silu(self.b(x) + x)
        return self.head(F.relu(self.fc(x.mean((2, 3)))))


MIXED = {
    "a:conv2d#0": "w8a8",
    "b:conv2d#0": "w4a8",
    "fc:linear#0": "bf16",
    "head:linear#0": "w4a8g32",
}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def net(model: nn.Module, x: Tensor) -> CompiledNetwork:
    # Searched roundings and moved scales: neither can be found again from scales alone.
    return assign(model, x[:1], [x], MIXED, tuned=False, equalize="cross_layer")


@pytest.fixture(scope="module")
def path(net: CompiledNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mpq.export_encodings(net, tmp_path_factory.mktemp("encodings") / "enc.json")


@pytest.fixture
def body(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_same_network_comes_back(
    net: CompiledNetwork, model: nn.Module, x: Tensor, path: Path
) -> None:
    again = mpq.from_encodings(model, x[:1], path, tuned=False)
    assert again.plan.assignment == net.plan.assignment
    assert torch.equal(again.reference(x), net.reference(x))
    assert torch.equal(again(x), net(x))
    weights = [(n.folder / "weights.bin").read_bytes() for n in (net, again)]
    assert weights[0] == weights[1]
    second = mpq.export_encodings(again, path.with_name("again.json"))
    kept = ("param_encodings", "activation_encodings")
    first, last = (json.loads(p.read_text(encoding="utf-8")) for p in (path, second))
    assert [first[key] for key in kept] == [last[key] for key in kept]


class Words(nn.Module):
    """Fewer columns than rows, which are the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.rows.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rows(tokens).relu())


def test_an_embedding_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (32, 6))
    model = Words().eval()
    net = assign(model, tokens[:1], [tokens], "w4a8", tuned=False)
    written = mpq.export_encodings(net, tmp_path / "words.json")
    again = mpq.from_encodings(model, tokens[:1], written, tuned=False)
    assert torch.equal(again(tokens), net(tokens))


def test_what_is_written(body: Any, net: CompiledNetwork, path: Path) -> None:
    by_site = {entry["name"]: entry for entry in body["param_encodings"]}
    assert {name: entry["candidate"] for name, entry in by_site.items()} == MIXED
    assert by_site["fc:linear#0"] == {
        "name": "fc:linear#0",
        "candidate": "bf16",
        "dtype": "float",
        "bitwidth": 16,
    }
    assert len(by_site["a:conv2d#0"]["scale"]) == 8
    assert [len(row) for row in by_site["head:linear#0"]["scale"]] == [1] * 5
    codes = load_file(path.with_suffix(".safetensors"))["codes/b:conv2d#0"]
    assert codes.dtype == torch.int8 and codes.shape == (8, 8, 3, 3)
    assert codes.min() >= -8 and codes.max() <= 7


def test_scales_alone_round_to_nearest(model: nn.Module, x: Tensor, body: Any) -> None:
    del body["parameters"]
    again = mpq.from_encodings(model, x[:1], body, tuned=False)
    record = next(r for r in again.materialized.records.values() if r.site.id == "a:conv2d#0")
    scale = torch.tensor(body["param_encodings"][0]["scale"])
    expected = (model.a.weight / scale.view(-1, 1, 1, 1)).round().clamp(-127, 127)
    assert torch.equal(record.weight.codes.float(), expected)


def refused(model: nn.Module, x: Tensor, body: Any, folder: Path) -> mpq.MpqError:
    target = folder / "changed.json"
    target.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(mpq.MpqError) as caught:
        mpq.from_encodings(model, x[:1], target, tuned=False)
    return caught.value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b["param_encodings"][0].update(name="z:conv2d#0"), "name a site"),
        (lambda b: b["param_encodings"].pop(), "leave sites out"),
        (lambda b: b["activation_encodings"][0].update(name="nowhere"), "name a tensor"),
        (lambda b: b["activation_encodings"].pop(), "has no range"),
        (lambda b: b["param_encodings"][0]["scale"].pop(), "another shape"),
        (lambda b: b["param_encodings"][1].update(bitwidth=5), "not those of the candidate"),
        (lambda b: b["parameters"].update(sha256="0" * 64), "damaged or missing"),
        (lambda b: b.update(version=2), "no encodings"),
        (lambda b: b["param_encodings"][3].update(scale=[[1.0], [1.0, 2.0]]), "no array"),
        (lambda b: b["param_encodings"].append(b["param_encodings"][0]), "stands twice"),
        (lambda b: b["activation_encodings"].append(b["activation_encodings"][0]), "stands twice"),
        *(
            (lambda b, s=scale: b["param_encodings"][0]["scale"].__setitem__(0, s), "not positive")
            for scale in (0.0, -0.1, 1e-60, float("inf"), float("nan"))
        ),
        (lambda b: b["param_encodings"][3]["scale"][0].__setitem__(0, -1.0), "not positive"),
        (lambda b: b["activation_encodings"][0].update(scale=float("inf")), "not positive"),
    ],
)
def test_errors_say_where(
    model: nn.Module, x: Tensor, body: Any, path: Path, change: Any, says: str
) -> None:
    change(body)
    error = refused(model, x, body, path.parent)
    assert says in error.message
    assert None not in (error.where, error.expected, error.found, error.remedy)


def test_integers_of_another_shape(model: nn.Module, x: Tensor, body: Any, path: Path) -> None:
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors["codes/a:conv2d#0"] = tensors["codes/a:conv2d#0"][:4].clone()
    save_file(tensors, path.parent / "cut.safetensors")
    import hashlib

    digest = hashlib.sha256((path.parent / "cut.safetensors").read_bytes()).hexdigest()
    changed = copy.deepcopy(body)
    changed["parameters"] = {"file": "cut.safetensors", "sha256": digest}
    error = refused(model, x, changed, path.parent)
    assert "a:conv2d#0: codes" in str(error.where)
