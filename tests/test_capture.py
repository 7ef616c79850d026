"""Capture: modules, exported programs and files become one flat graph; errors say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from operator_nets import CASES, TwoInputs
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.capture import as_inputs, capture, source_line
from mpq_compile.errors import CaptureError


class Small(nn.Module):
    """One convolution, with parts that subclasses use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def assert_captures(model: nn.Module, *inputs: Tensor) -> None:
    graph = capture(model, inputs)
    with torch.no_grad():
        expected = pytree.tree_leaves(model.eval()(*(x.clone() for x in inputs)))
        found = graph.module(*(x.clone() for x in inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture(model, X)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_in_training_is_taken_as_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    (found,) = capture(model, X).module(X)
    torch.testing.assert_close(found, model.eval()(X))


class Cache:
    """What ``torch.export`` does not know."""


class Caching(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Cache]:
        return x * 2, Cache()


def test_an_output_that_is_no_tensor_is_named() -> None:
    with pytest.raises(CaptureError, match="something else than tensors") as caught:
        capture(Caching(), X)
    assert (caught.value.where, caught.value.found) == ("Caching", "Cache")
    assert "use_cache = False" in str(caught.value.remedy)


def test_outputs_are_flat_and_their_tree_is_kept() -> None:
    graph = capture(TwoInputs(), CASES["two_inputs"].inputs(2))
    outputs = graph.module(*CASES["two_inputs"].inputs(2))
    assert isinstance(outputs, tuple) and len(outputs) == 2
    assert set(pytree.tree_unflatten(list(outputs), graph.out_spec)) == {"logits", "aux"}


def test_the_batch_is_free_where_the_model_allows_it() -> None:
    graph = capture(Small(), X[:1])
    assert graph.dynamic_batch
    assert graph.module(torch.randn(7, 3, 5, 5))[0].shape[0] == 7


class AlwaysDrops(nn.Module):
    """Drops in eval mode as well, for nobody said otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x))


def test_dropout_in_eval_mode_is_left_out_and_said() -> None:
    model, x = AlwaysDrops().eval(), torch.randn(2, 4)
    with pytest.warns(RuntimeWarning, match=r"F.dropout\(x\).*training=self.training"):
        graph = capture(model, x)
    assert graph.dynamic_batch
    assert torch.equal(graph.module(x)[0], model.layer(x))


class FixedBatch(Small):
    """Names its batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(2, -1)


class Mixed(Small):
    """Samples change each other's results."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x - x.mean(0, keepdim=True)


class Turned(Small):
    """The batch is not the first dimension of the output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).transpose(0, 1)


class Counted(Small):
    """Asks for the length of the batch as a number, which export fixes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(len(x), -1)


class Constant(Small):
    """One output does not depend on the batch."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.conv.weight * 2


@pytest.mark.parametrize("model", [FixedBatch, Counted, Mixed, Turned, Constant])
def test_the_batch_is_fixed_where_samples_are_not_apart(model: type[nn.Module]) -> None:
    assert not capture(model().eval(), X).dynamic_batch
    assert_captures(model(), X)


class Inplace(Small):
    """Writes into its own values, and reads them again."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.relu(y, inplace=True)
        y += 1.0
        return self.other(z) + y


class WritesView(Small):
    """Writes through a slice."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].mul_(2.0)
        y[:, :, 0] = 0.5
        return self.other(y)


class WritesBase(Small):
    """Writes into a tensor of which a view is read later."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        v = y.flatten(2)
        F.silu(y, inplace=True)
        return self.other(y).flatten(2) + v


class WritesInput(Small):
    """Changes what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mul_(2.0))


class WritesIndexed(nn.Module):
    """Writes through an index, then reads the tensor by its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, torch.tensor([0, 2])] = 0.5
        return y


@pytest.mark.parametrize("model", [Inplace, WritesView, WritesBase, WritesInput, WritesIndexed])
def test_in_place_operators(model: type[nn.Module]) -> None:
    assert_captures(model(), X)


def test_no_in_place_operator_is_left() -> None:
    for model in (Inplace, WritesView, WritesBase):
        graph = capture(model(), X).module.graph
        names = [n.target._schema.name for n in graph.nodes if hasattr(n.target, "_schema")]
        assert not [name for name in names if name.endswith("_")]


class Stateful(Small):
    """Holds a counter, a cache and a tensor that is not registered, for those that write."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(4, 4, 5, 5), persistent=False)
        self.loose = torch.zeros(1)


class Counts(Stateful):
    """Counts its calls in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class Replaces(Stateful):
    """Puts another tensor in the place of its buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.conv(x)


class Caches(Stateful):
    """Writes a row of a cache, which is how decoders with a static cache do it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.cache.index_copy_(0, torch.tensor([1]), y[:1])
        return y + self.cache.mean()


class WritesParameter(Stateful):
    """Moves a weight."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.bias.mul_(0.5)
        return self.conv(x)


class Loose(Stateful):
    """Writes into a tensor that is neither buffer nor parameter."""

    def forward(self, x: Tensor) -> Tensor:
        self.loose += 1
        return self.conv(x) + self.loose


STATEFUL = [
    (Counts, "calls"),
    (Replaces, "calls"),
    (Caches, "cache"),
    (WritesParameter, "conv.bias"),
    (Loose, "loose"),
]


@pytest.mark.parametrize(("model", "name"), STATEFUL)
def test_a_write_into_what_the_model_holds_is_refused(model: type[nn.Module], name: str) -> None:
    """A network has no state: the write would be lost."""
    with pytest.raises(CaptureError, match="write would be lost") as caught:
        capture(model(), X)
    assert name in str(caught.value.found) and "test_capture.py" in str(caught.value.where)
    assert "without state" in str(caught.value.expected) and "input" in str(caught.value.remedy)


def test_it_is_refused_in_an_exported_program_too() -> None:
    """Before its writes were made outputs, and after; the user's line is named."""
    program = torch.export.export(Counts().eval(), (X,))
    for given in (program, program.run_decompositions({})):
        with pytest.raises(CaptureError, match="write would be lost") as caught:
            capture(given)
        assert "self.calls += 1" in str(caught.value.where)
    training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(CaptureError, match="write would be lost") as caught:
        capture(torch.export.export(training.train(), (X,)))
    assert "1.running_mean" in str(caught.value.found)


def test_a_buffer_that_is_only_read_stays() -> None:
    assert_captures(Stateful(), X)


def test_an_exported_program_and_its_file(tmp_path: Path) -> None:
    program = torch.export.export(Small().eval(), (X,))
    direct = capture(program)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = capture(tmp_path / "net.pt2")
    assert torch.equal(direct.module(X)[0], loaded.module(X)[0])
    assert torch.equal(loaded.example_inputs[0], X)
    assert capture(str(tmp_path / "net.pt2"), X[:2]).example_inputs[0].shape[0] == 2


def test_source_lines_point_at_the_model() -> None:
    graph = capture(Small(), X).module.graph
    lines = [source_line(n) for n in graph.nodes if n.op == "call_function"]
    assert all("test_capture.py" in line and "F.relu(self.conv(x))" in line for line in lines)


def test_as_inputs() -> None:
    assert as_inputs(X) == (X,) and as_inputs([X]) == (X,) and as_inputs((X, X)) == (X, X)


class Branching(Small):
    """Chooses by the data."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Strange(Small):
    """Returns a number."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.conv(x), 3


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Small, X, "not a model"),
        (Small(), None, "must be tensors"),
        (Small(), (X, 3), "must be tensors"),
        (Small(), (), "must be tensors"),
        (Small(), torch.randn(2, 4, 5, 5), "cannot trace"),
        (Branching(), X, "cannot trace"),
        (Strange(), X, "something else than tensors"),
        ("missing.pt2", None, "cannot read"),
        ("net.onnx", None, "cannot read"),
    ],
)
def test_errors_say_what_to_do(model: object, inputs: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model, inputs)  # type: ignore[arg-type]
    assert caught.value.remedy and caught.value.found and caught.value.expected


def test_packed_sequences_are_named() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 8, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    with pytest.raises(CaptureError, match="cannot trace") as caught:
        capture(Packed(), (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    assert "padded sequence" in str(caught.value.remedy)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"not an archive")
    with pytest.raises(CaptureError, match="cannot be loaded") as caught:
        capture(path)
    assert str(path) in str(caught.value)


def test_inputs_that_do_not_fit_an_exported_program() -> None:
    program = torch.export.export(Small().eval(), (X,))
    with pytest.raises(CaptureError, match="does not run") as caught:
        capture(program, torch.randn(2, 4, 5, 5))
    assert "shapes" in str(caught.value.remedy)
