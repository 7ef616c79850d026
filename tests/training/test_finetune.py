"""Fine-tuning: better than before, what was trained is what runs, resumed runs, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mpq_compile as mpq
from mpq_compile.finetuning import Finetuned, finetune_session
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session
from mpq_compile.training import train
from mpq_compile.training.epochs import read_epochs
from mpq_compile.training.loss import Loss
from mpq_compile.training.state import TrainingState
from mpq_compile.training.student import Student
from mpq_compile.training.train import Schedule

SAMPLES = 128


class Mixed(nn.Module):
    """Skips, a depthwise convolution, a hardswish, a gate, a pooling and a head without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.hardswish(self.one(x))))
        x = F.relu(self.depthwise(F.max_pool2d(x, 2)))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        return 20 * self.head(x.mean((2, 3)))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


X = torch.randn(SAMPLES, 3, 12, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 5, (SAMPLES,), generator=torch.Generator().manual_seed(2))
NAMES = ("w3a4", "w4a8", "w8a8", "w2a8", "fp32", "bf16")


def session(**more: Any) -> Session:
    return Session(
        model(), X[:1], [X], target="bit_serial", recipe=Recipe(rounding="nearest"), **more
    )


def uniform(found: Session, name: str = "w3a4") -> dict[str, str]:
    return {site.id: name for site in found.network.sites}


def mixed(found: Session) -> dict[str, str]:
    return {site.id: NAMES[i % len(NAMES)] for i, site in enumerate(found.network.sites)}


def trained(found: Session, assignment: dict[str, str], **more: Any) -> Finetuned:
    schedule = Schedule(epochs=more.pop("epochs", 6), rate=more.pop("rate", 3e-3))
    data = read_epochs(more.pop("loader", X), found.network, 16, seed=0)
    return finetune_session(found, assignment, data, schedule, **more)


def noise(found: Session, assignment: dict[str, str]) -> float:
    """Noise-to-signal ratio of the integer oracle."""
    exact = found.float_graph()(X)
    error = found.reference(assignment)(X) - exact
    return float(error.square().sum() / exact.square().sum())


@pytest.mark.parametrize("assign", [uniform, mixed])
def test_the_student_computes_what_the_oracle_computes(assign: Any) -> None:
    found = session()
    assignment = assign(found)
    student = Student(found.network, found.rounded_for(assignment), assignment)
    with torch.no_grad():
        scores = student.module(X)[0]
    oracle = found.reference(assignment)(X)
    power = (oracle - oracle.mean(0)).square().mean()
    # Equal but for values that fall between two codes.
    assert (scores - oracle).square().mean() < 0.002 * power


class TwoNorms(nn.Module):
    """One convolution behind two norms, folded into weights that differ, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.first, self.second):
            nn.init.uniform_(norm.weight, -2.0, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.conv(x)))
        x = self.again(self.again(x).relu())
        return self.second(self.conv(x)).mean((2, 3))


def test_weights_that_norms_made_differ_are_trained_apart() -> None:
    torch.manual_seed(0)
    found = Session(
        TwoNorms().eval(), X[:1], [X], target="bit_serial", recipe=Recipe(rounding="nearest")
    )
    assignment = uniform(found, "w8a8")
    owners = found.network.owner_of
    assert [owners[f"conv:conv2d#{i}"] for i in range(2)] == ["conv:conv2d#0", "conv:conv2d#1"]
    assert owners["again:conv2d#1"] == "again:conv2d#0"
    student = Student(found.network, found.rounded_for(assignment), assignment)
    with torch.no_grad():
        scores = student.module(X)[0]
    oracle = found.reference(assignment)(X)
    assert (scores - oracle).square().mean() < 0.002 * oracle.square().mean()
    before = noise(found, assignment)
    found.keep(assignment, trained(found, assignment, epochs=1, rate=1e-6).calibration)
    assert noise(found, assignment) < 1.5 * before


@pytest.mark.parametrize("assign", [uniform, mixed])
def test_training_brings_the_oracle_nearer_to_float(assign: Any) -> None:
    found = session()
    assignment = assign(found)
    before = noise(found, assignment)
    result = trained(found, assignment)
    assert result.kept and result.after < result.before
    found.keep(assignment, result.calibration)
    assert noise(found, assignment) < before


def test_a_float_site_is_left_alone() -> None:
    found = session()
    assignment = dict.fromkeys(uniform(found), "w3a4")
    first = next(iter(assignment))
    assignment[first] = "fp32"
    student = Student(found.network, found.rounded_for(assignment), assignment)
    assert first not in student.weights and first not in student.biases
    assert len(student.weights) == len(assignment) - 1


def test_what_was_trained_is_what_runs() -> None:
    plan = mpq.plan(model(), X[:1], [X], candidates=["w2a8"], rounding="nearest")
    network = mpq.finetune(plan, [X], model(), X[:1], epochs=6, verify=False)
    assert network.plan.assignment == plan.assignment
    assert "fine-tuned in 96 steps" in network.plan.notes[-1]
    assert torch.equal(network(X[:1]), network.reference(X[:1]))
    plain = mpq.compile(model(), X[:1], [X], plan=plan, verify=False)
    assert not torch.equal(network(X[:1]), plain(X[:1]))
    assert network.size_bytes == plain.size_bytes


def test_the_same_seed_gives_the_same_network() -> None:
    found = session()
    scales = [trained(found, uniform(found), epochs=1).calibration.qparams for _ in range(2)]
    student = Student(found.network, found.rounded_for(uniform(found)), uniform(found))
    assert student.ranges
    for key in student.ranges:
        assert scales[0](*key) == scales[1](*key)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session()
    assignment = uniform(found)
    whole = trained(found, assignment)
    file = tmp_path / "run.safetensors"
    monkeypatch.setattr("mpq_compile.training.train._SAVED_EVERY_S", 0.0)
    save, calls = TrainingState.save, []

    def interrupted(self: TrainingState, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        calls.append(step)
        if step == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(found, assignment, checkpoint=file)
    monkeypatch.setattr(TrainingState, "save", save)
    resumed = trained(found, assignment, checkpoint=file)
    assert calls == list(range(1, 12))
    assert resumed.steps == whole.steps
    assert resumed.after == pytest.approx(whole.after, rel=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    # A run that is complete is only read.
    assert trained(found, assignment, checkpoint=file).after == resumed.after


def test_what_comes_out_is_the_mean_of_the_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session()
    assignment = uniform(found)
    student = Student(found.network, found.rounded_for(assignment), assignment)
    parameters = [p for learned in student.learned for p in learned.parameters()]
    step, seen = train._step, []

    def watched(*arguments: Any) -> None:
        step(*arguments)
        seen.append([p.detach().clone() for p in parameters])

    monkeypatch.setattr(train, "_step", watched)
    data = read_epochs(X, found.network, 16, seed=0)
    loss = Loss(name="distillation", teacher=student.teacher(), outputs=student.outputs)
    assert train.train(student, loss, data, Schedule(epochs=1, rate=3e-3)) == len(seen) == 8
    for i, parameter in enumerate(parameters):
        mean = torch.stack([values[i] for values in seen[4:]]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean)
        assert i > 0 or not torch.equal(mean, seen[-1][i])


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    found = session()
    file = tmp_path / "run.safetensors"
    trained(found, uniform(found), epochs=1, checkpoint=file)
    with pytest.raises(mpq.PlanError, match="one of another run"):
        trained(found, uniform(found), epochs=2, checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(mpq.PlanError, match="checkpoint cannot be used") as caught:
        trained(found, uniform(found), epochs=1, checkpoint=file)
    assert caught.value.where == str(file)


def test_a_network_that_training_makes_worse_is_kept_as_it_was() -> None:
    found = session()
    assignment = uniform(found, "w8a8")
    result = trained(found, assignment, epochs=1, rate=0.3)
    assert not result.kept and result.calibration is found.rounded_for(assignment)
    assert "as it was" in result.note


@pytest.mark.parametrize("loss", ["labels", "both"])
def test_labels(loss: str) -> None:
    found = session()
    with pytest.raises(mpq.CalibrationError, match="nothing to compare labels with"):
        trained(found, uniform(found), loss=loss, epochs=1)
    with pytest.raises(mpq.CalibrationError, match="labels do not match"):
        trained(found, uniform(found), loss=loss, epochs=1, loader=[(X, Y + 1)])
    assert trained(found, uniform(found), loss=loss, epochs=1, loader=[(X, Y)]).steps == 8


def test_loaders() -> None:
    found = session()
    data = read_epochs(DataLoader(TensorDataset(X, Y), 24), found.network, 16, seed=0)
    sizes = [len(batch.inputs[0]) for batch in data.epoch(0)]
    assert (data.steps, sizes) == (6, [24, 24, 24, 24, 24, 8])
    pooled = read_epochs(iter([(X[:40], Y[:40]), (X[40:], Y[40:])]), found.network, 48, seed=0)
    orders = [[batch.labels for batch in pooled.epoch(number)] for number in (0, 0, 1)]
    assert pooled.steps == 2 and all(len(order) == 2 for order in orders)
    assert all(map(torch.equal, orders[0], orders[1]))
    assert not all(map(torch.equal, orders[0], orders[2]))
    assert trained(found, uniform(found), epochs=1, loader=DataLoader(X, 32)).steps == 4


def test_the_teacher_and_the_model_stay_what_they_were() -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = Session(net, X[:1], [X], target="bit_serial", recipe=Recipe(rounding="nearest"))
    exact = found.float_graph()(X)
    trained(found, uniform(found), epochs=1)
    assert torch.equal(found.float_graph()(X), exact)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_names_that_are_not_known() -> None:
    plan = mpq.plan(model(), X[:1], [X], target="bit_serial", candidates=["w8a8"])
    with pytest.raises(mpq.PlanError, match="unknown loss 'labls'") as caught:
        mpq.finetune(plan, [X], model(), X[:1], loss="labls")
    assert "'labels'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", value) for value in (0, -1, 1.5, "2")),
        *(("batch_size", value) for value in (0, -8, 2.5)),
        *(("rate", value) for value in (0, -1e-3, float("inf"), float("nan"), "fast")),
    ],
)
def test_numbers_that_are_not_positive(name: str, value: Any) -> None:
    plan = mpq.plan(model(), X[:1], [X], target="bit_serial", candidates=["w8a8"])
    with pytest.raises(mpq.PlanError, match=f"{name} must be positive") as caught:
        mpq.finetune(plan, [X], model(), X[:1], **{name: value})
    assert (caught.value.where, caught.value.found) == (name, repr(value))
