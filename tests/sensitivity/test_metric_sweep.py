"""Memory, going on after a stop, and how outputs are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from metric_nets import Chain, Setting, setting
from torch import Tensor, nn

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.reconstruct.correction import fit_channels
from mpq_compile.registry import METRICS
from mpq_compile.sensitivity import checkpoint
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.kl import KlMetric
from mpq_compile.sensitivity.slices import Slice, cut, draws, value_bytes
from mpq_compile.sensitivity.sweep import Sweep

RESUMABLE = [name for name in METRICS if not name.startswith("roundoff")]


def chain(samples: int = 40) -> Setting:
    torch.manual_seed(3)
    return setting(Chain(), (torch.randn(samples, 5),), torch.randint(0, 4, (samples,)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, where every slice is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint, "WORTH_S", 0.0)
    return tmp_path / "mpq_compile" / "sensitivity"


@pytest.mark.parametrize("name", RESUMABLE)
def test_what_was_stopped_goes_on(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, metric = chain(), METRICS.load(name)(memory_mb=0.004)
    expected = net.measure(metric, ("w8a8", "w4a8"))
    assert not list(cache.glob("*/*"))  # nothing is remembered in tests

    slices, seen = [], QuantizedGraph.assign
    save = checkpoint.Checkpoint.save

    def stop(self: checkpoint.Checkpoint, index: int, *rest: object) -> None:
        save(self, index, *rest)  # type: ignore[arg-type]
        slices.append(index)
        if len(slices) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            net.measure(metric, ("w8a8", "w4a8"))
    assert len(list(cache.glob("*/*.npz"))) == 2
    again: list[int] = []

    def note(self: checkpoint.Checkpoint, index: int, *rest: object) -> None:
        again.append(index)

    monkeypatch.setattr(checkpoint.Checkpoint, "save", note)
    assert net.measure(metric, ("w8a8", "w4a8")) == expected
    assert again and not set(again) & set(slices)
    assert QuantizedGraph.assign is seen and not list(cache.glob("*/*"))


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_complete_pass_is_not_redone(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_EVALUATIONS", str(tmp_path / "evaluations"))
    net, metric = chain(), METRICS.load(name)(memory_mb=0.004)
    expected = net.measure(metric, ("w8a8", "w4a8"))
    assert list(cache.glob("*/*.npz"))

    def nothing_left(self: Sweep, units: dict[int, object], *rest: object) -> Iterator[object]:
        assert not units
        return iter(())

    monkeypatch.setattr(Sweep, "_complete", nothing_left)
    assert net.measure(metric, ("w8a8", "w4a8")) == expected
    monkeypatch.setattr(checkpoint, "_LARGE", 10)
    assert net.measure(metric, ("w8a8", "w4a8")) == expected
    assert not list(cache.glob("*/*"))


def test_other_data_or_options_do_not_go_on(cache: Path) -> None:
    net = chain(80)
    graph = QuantizedGraph(net.network, net.calibration)
    slices = cut(net.batches, net.network, 40, 1.0, 1.0)
    choices = dict.fromkeys(net.sites, ("w8a8",))
    other = dict.fromkeys(net.sites, ("w4a8",))
    keys = {
        checkpoint.run_key("a", graph, slices, choices),
        checkpoint.run_key("b", graph, slices, choices),
        checkpoint.run_key("a", graph, slices[:1], choices),
        checkpoint.run_key("a", graph, slices, other),
    }
    assert len(keys) == 4
    assert checkpoint.run_key("a", graph, slices, choices) in keys
    fit_channels(net.network, net.calibration, net.batches, other, "bias")
    keys.add(checkpoint.run_key("a", graph, slices, choices))
    net.calibration.fits.clear()
    fit_channels(net.network, net.calibration, net.batches, other, "affine")
    keys.add(checkpoint.run_key("a", graph, slices, choices))
    assert len(keys) == 6


def test_a_damaged_slice_is_computed_again(cache: Path) -> None:
    store = checkpoint.Checkpoint.open("key")
    assert store is not None
    store.save(0, {"x": torch.arange(3.0)}, 1.0)
    assert store.load(0)["x"].tolist() == [0, 1, 2]
    next(store.folder.glob("*.npz")).write_bytes(b"half a file")
    assert store.load(0) is None and store.load(1) is None


def test_slices_fit_the_memory_and_keep_the_order() -> None:
    net = chain(samples=70)
    slices = cut(net.batches, net.network, 50, 1e5, 1.0)
    assert all(part.size <= 10 for part in slices)
    assert [part.start for part in slices] == [0, 10, 20, 30, 32, 42]
    joined = torch.cat([part.batch.inputs[0] for part in slices])
    whole = torch.cat([batch.inputs[0] for batch in net.batches])
    assert torch.equal(joined, whole[:50])
    assert value_bytes(net.network) == 4 * (5 + 8 * 4 + 4)


def test_draws_belong_to_samples() -> None:
    batch = Batch(inputs=(torch.zeros(6, 1),))
    later = Batch(inputs=(torch.zeros(2, 1),))
    whole = draws(1, Slice(start=0, batch=batch), (3,))
    part = draws(1, Slice(start=4, batch=later), (3,))
    assert (whole[4:] == part).all() and len(set(whole.ravel().tolist())) == 18


class Outputs(nn.Module):
    """A linear layer whose output is brought to a shape."""

    def __init__(self, *shape: int, softmax: bool = False, labels: bool = False) -> None:
        super().__init__()
        self.shape, self.softmax, self.labels = shape, softmax, labels
        self.fc = nn.Linear(5, 12)

    def forward(self, x: Tensor):
        y = self.fc(x).reshape(-1, *self.shape)
        y = y.softmax(1) if self.softmax else y
        return (y, y.argmax(1)) if self.labels else y


def heads(model: nn.Module, labels: Tensor | None = None) -> tuple[Head, ...]:
    torch.manual_seed(0)
    net = setting(model, (torch.randn(6, 5),), labels)
    graph = QuantizedGraph(net.network, net.calibration)
    return find_heads(graph, [Slice(start=0, batch=net.batches[0])])


def test_two_axes_are_classes_and_more_are_not() -> None:
    assert heads(Outputs(12)) == (Head(index=0, classes=1),)
    assert heads(Outputs(12, 1, 1)) == (Head(index=0, classes=1),)
    (image,) = heads(Outputs(3, 2, 2))
    assert image.classes is None and image.power > 0


def test_labels_say_where_the_classes_are() -> None:
    assert heads(Outputs(3, 4), torch.zeros(6, 4).long())[0].classes == 1
    assert heads(Outputs(3, 4), torch.zeros(6, 3).long())[0].classes == 2
    assert heads(Outputs(3, 4), torch.zeros(6, 3))[0].classes is None


def test_probabilities_are_recognised() -> None:
    (head,) = heads(Outputs(12, softmax=True))
    assert head.normalized
    p = torch.tensor([[0.2, 0.8]]).double()
    q = torch.tensor([[0.5, 0.5]]).double()
    pair = [Head(index=0, classes=1, normalized=True).scores([v]) for v in (p, q)]
    kl = float((p * (p / q).log()).sum())
    assert float(head.divergence(*pair)) == pytest.approx(kl)
    hellinger = 2 * (q.sqrt() - p.sqrt())
    torch.testing.assert_close(head.displacement(*pair), hellinger)


def test_a_regression_loses_half_its_noise_to_signal_ratio() -> None:
    torch.manual_seed(0)
    net = setting(Outputs(3, 2, 2), (torch.randn(16, 5),))
    found = {n: net.measure(METRICS.load(n)(), ("w4a8",)) for n in ("kl", "gauss_newton", "sqnr")}
    half = found["sqnr"].loss[net.sites[0]]["w4a8"] / 2
    assert found["kl"].loss[net.sites[0]]["w4a8"] == pytest.approx(half, rel=1e-4)
    assert found["gauss_newton"].loss[net.sites[0]]["w4a8"] == pytest.approx(half, rel=1e-3)


def test_integer_outputs_are_left_out() -> None:
    assert [head.index for head in heads(Outputs(12, labels=True))] == [0]


def test_no_usable_output_is_an_error() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).argmax(1)

    net = setting(Sum(), (torch.randn(6, 5),))
    with pytest.raises(CalibrationError, match="no output tells") as caught:
        net.measure(KlMetric(), ("w8a8",))
    assert "roundoff" in str(caught.value.remedy)
