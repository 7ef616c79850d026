"""Calibration data: what is accepted, how it is cut, and what is refused with a remedy."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from operator_nets import CASES
from torch import nn

from mpq_compile.calibrate import MAX_BATCH, calibrate, read_batches, spread
from mpq_compile.capture import capture
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network, prepare

X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(5)


@cache
def network(batch: int = 1) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return prepare(capture(model, X[:batch]))


@cache
def two_inputs() -> Network:
    case = CASES["two_inputs"]
    return prepare(capture(case.model(), case.inputs(1)))


@pytest.mark.parametrize(
    "data",
    [X, [X], [X[:2], X[2:]], [(X,)], [[X]], iter([X]), torch.utils.data.DataLoader(X)],
)
def test_batches_of_one_input(data: Any) -> None:
    batches = read_batches(data, network())
    assert sum(len(batch.inputs[0]) for batch in batches) == 5
    assert all(batch.labels is None for batch in batches)


@pytest.mark.parametrize("data", [[(X, Y)], [((X,), Y)], [[X, Y.tolist()]]])
def test_labels(data: Any) -> None:
    (batch,) = read_batches(data, network())
    assert batch.labels is not None and batch.labels.tolist() == Y.tolist()


def test_two_inputs_with_and_without_labels() -> None:
    image, vector = CASES["two_inputs"].inputs(4)
    plain = read_batches([(image, vector)], two_inputs())
    assert plain[0].labels is None and len(plain[0].inputs) == 2
    for data in ([(image, vector, torch.zeros(4))], [((image, vector), torch.zeros(4))]):
        (batch,) = read_batches(data, two_inputs())
        assert batch.labels is not None and len(batch.inputs) == 2


def test_long_batches_are_cut() -> None:
    x = torch.randn(MAX_BATCH * 2 + 3, 3, 6, 6)
    sizes = [len(b.inputs[0]) for b in read_batches([(x, torch.zeros(len(x)))], network())]
    assert sizes == [MAX_BATCH, MAX_BATCH, 3]


def exhausted() -> Any:
    generator = (x for x in [X])
    list(generator)
    return generator


@pytest.mark.parametrize(
    ("data", "message", "remedy"),
    [
        ([], "empty", "fresh DataLoader"),
        (exhausted(), "empty", "fresh DataLoader"),
        (None, "no calibration data", "representative inputs"),
        ("images", "no such file", "correct the path"),
        ({"x": X}, "no calibration data", "representative inputs"),
        ([X, X[:, :2]], "wrong input shape", "batch first"),
        ([X[0]], "wrong input shape", "batch first"),
        ([X[:0]], "wrong input shape", "batch first"),
        ([X.double()], "wrong input dtype", "torch.float32"),
        ([torch.full_like(X, float("nan"))], "not finite", "repair"),
        ([X / 0], "not finite", "repair"),
        ([(X, X, X)], "does not fit", "yield tensors"),
        ([(X, Y[:3])], "labels do not match", "one label"),
    ],
)
def test_errors_say_what_to_do(data: Any, message: str, remedy: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        read_batches(data, network())
    assert remedy in str(caught.value.remedy)


def test_the_batch_that_is_wrong_is_named() -> None:
    bad = X.clone()
    bad[3, 0, 0, 0] = float("inf")
    with pytest.raises(CalibrationError, match="calibration batch 1, input 0") as caught:
        read_batches([X, bad], network())
    assert caught.value.found == "1 NaN or infinite values"


def test_calibration_sees_every_float_tensor() -> None:
    batches = read_batches([X[:2], X[2:]], network())
    found = calibrate(network(), batches)
    assert found.samples == 5
    nodes = network().module.graph.nodes
    kinds = ("placeholder", "get_attr", "call_function")  # constants may be operands too
    assert list(found.histograms) == [n.name for n in nodes if n.op in kinds]
    image = next(n.name for n in nodes if n.op == "placeholder")
    assert found.histograms[image].maximum == X.max().item()
    assert all(h.counts.sum() > 0 for h in found.histograms.values())


def test_calibration_does_not_depend_on_how_data_is_cut() -> None:
    whole = calibrate(network(), read_batches([X], network()))
    pieces = calibrate(network(), read_batches(list(X.split(2)), network()))
    for name, histogram in whole.histograms.items():
        assert pieces.histograms[name].maximum == pytest.approx(histogram.maximum, rel=1e-5)
        assert pieces.histograms[name].minimum == pytest.approx(histogram.minimum, rel=1e-5)


class Unreached(nn.Module):
    """Its second layer reads none of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x[:, :0]).sum(1, keepdim=True)


def test_a_site_that_sees_no_values_is_named() -> None:
    x = torch.randn(2, 3, 4)
    found = prepare(capture(Unreached(), x))
    with pytest.raises(CalibrationError, match="never executed on data") as caught:
        calibrate(found, read_batches([x], found))
    assert caught.value.where == "second:linear#0"


def test_ranges_of_growing_parts_are_kept() -> None:
    found = calibrate(network(), read_batches(list(X.split(1)), network()))
    assert [prefix.samples for prefix in found.prefixes] == [1, 2]
    read = {network().node(name).args[0].name for name in network().node_of.values()}
    for prefix in found.prefixes:
        assert set(prefix.histograms) == read
        first = calibrate(network(), read_batches([X[: prefix.samples]], network()))
        for name, histogram in prefix.histograms.items():
            assert histogram.maximum == pytest.approx(first.histograms[name].maximum, rel=1e-5)
    assert not calibrate(network(), read_batches([X], network())).prefixes


def test_spread_takes_the_first_samples() -> None:
    batches = read_batches([X[:2], X[2:4], X[4:]], network())
    assert [len(b.inputs[0]) for b in spread(batches, 3)] == [2, 2]
    assert len(spread(batches, 100)) == 3
