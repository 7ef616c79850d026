"""The whole job on real data that ships with scikit-learn: handwritten digits, 8 × 8 pixels."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.closed_loop import compile_session
from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.pipeline import assign_session
from mpq_compile.progress import track
from mpq_compile.report.demo_table import print_plan, print_title
from mpq_compile.report.page import write_report
from mpq_compile.report.plot import save_plan_picture
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.sensitivity.sqnr import decibels, noise_to_signal
from mpq_compile.session import Session
from mpq_compile.types import Budget, Plan

log = logging.getLogger(__name__)

TRAINING_SAMPLES, CALIBRATION_SAMPLES = 1200, 128


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A small residual network: [B, 1, 8, 8] → [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.block1 = Residual(32)
        self.down = nn.Sequential(
            nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.block2 = Residual(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.block2(self.down(self.block1(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WideMlp(nn.Module):
    """Large linear layers for one sample at a time: reading the weights is all the work."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.fourth = nn.Linear(width, width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] → class scores [B, 10]."""
        x = F.relu(self.first(x.flatten(1)))
        x = F.relu(self.second(x))
        x = F.relu(self.third(x))
        return self.last(F.relu(self.fourth(x)))


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Standardised digits: training, calibration (a part of it) and held-out images."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]

    @property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of (images, labels)."""
        images, labels = (t[:CALIBRATION_SAMPLES] for t in self.train)
        return list(zip(images.split(32), labels.split(32), strict=True))


def load_digits() -> Digits:
    """Return scikit-learn's 1,797 digits in a fixed shuffled order."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)[order] / 16
    y = torch.from_numpy(labels).long()[order]
    x = (x - x[:TRAINING_SAMPLES].mean()) / x[:TRAINING_SAMPLES].std()
    return Digits(
        train=(x[:TRAINING_SAMPLES], y[:TRAINING_SAMPLES]),
        held_out=(x[TRAINING_SAMPLES:], y[TRAINING_SAMPLES:]),
    )


def train(model: nn.Module, digits: Digits, epochs: int, title: str) -> nn.Module:
    """Train with Adam for a few seconds; return the model in eval mode."""
    images, labels = digits.train
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in track(range(epochs), f"train {title}"):
        for index in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    ``accuracy`` and ``sqnr_db`` (against float) on the held-out digits, by the deployed network
    where ``measured_ms`` is given and by its oracle elsewhere; ``loss`` is the metric's.
    """

    name: str
    accuracy: float
    sqnr_db: float | None
    loss: float
    size_kb: float
    predicted_ms: float | None
    measured_ms: float | None
    speedup: float | None
    within: bool | None
    uniform: bool


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return top-1 in %."""
    return 100.0 * float((scores.argmax(1) == labels).float().mean())


class Part:
    """One plan of the demo: its session, its rows and what it must show.

    Args:
        title: Heading.
        model: A trained network.
        digits: The data.
        target: Profile.
        candidates: What the solver chooses from, the uniform rows as well.
    """

    def __init__(
        self, title: str, model: nn.Module, digits: Digits, target: str, candidates: Sequence[str]
    ) -> None:
        self.title = title
        self.model = model
        self.digits = digits
        self.candidates = candidates
        example = digits.held_out[0][:1]
        self.session = Session(
            model, example, digits.calibration, target=target, candidates=candidates
        )

    def uniform_plan(self, name: str, budget: Budget) -> Plan:
        """Return the plan of one candidate at every site."""
        assignment = {site.id: name for site in self.session.network.sites}
        return self.session.plan_for(assignment, budget)

    def row(self, name: str, plan: Plan, scores: Tensor, within: bool, uniform: bool) -> Row:
        """Return the line of a plan whose held-out scores are given."""
        images, labels = self.digits.held_out
        with torch.no_grad():
            exact = self.model(images)
        ratio = noise_to_signal([scores], [exact])
        return Row(
            name=name,
            accuracy=accuracy(scores, labels),
            sqnr_db=None if ratio == 0 else decibels(ratio),
            loss=plan.loss or 0.0,
            size_kb=plan.predicted.size_bytes / 1e3,
            predicted_ms=plan.predicted.latency_ms,
            measured_ms=None,
            speedup=None,
            within=within,
            uniform=uniform,
        )

    def uniform_costs(self) -> dict[str, dict[str, float]]:
        """Return predicted totals of each uniform assignment."""
        allocation = self.session.allocation()
        return {
            name: allocation.usage({site.id: name for site in self.session.network.sites})
            for name in self.candidates
        }


def fits(usage: dict[str, float], budget: Budget) -> bool:
    """Tell whether predicted totals are within latency and size budgets."""
    given = budget.given()
    latency = usage["latency_us"] / 1e3 <= given.get("latency_ms", float("inf"))
    return latency and usage["size_bytes"] / 1e6 <= given.get("size_mb", float("inf"))


def run_measured(part: Part, budget: Budget, output: Path, name: str) -> dict[str, Any]:
    """Compile within ``budget`` on this machine; compare with float and every uniform."""
    network, budget = compile_with_room(part, budget)
    images = part.digits.held_out[0]
    usages = part.uniform_costs()
    plans = {c: part.uniform_plan(c, budget) for c in part.candidates}
    built = {
        c: assign_session(part.session, c) for c in track(part.candidates, "build uniform networks")
    }
    device = network.device
    with device.lock():
        turns = device.time_networks([net.folder for net in (*built.values(), network)], 7)
    times = [statistics.median(turns.medians_ms(i)) for i in range(len(built) + 1)]
    baseline = times[list(built).index("fp32")]
    rows = []
    for c, net in built.items():
        rows.append(part.row(f"all {c}", plans[c], net(images), fits(usages[c], budget), True))
    verdict = bool(network.verification and network.verification.within_budget)
    rows.append(part.row("plan", network.plan, network(images), verdict, False))
    rows = [
        Row(**{**asdict(row), "measured_ms": t, "speedup": baseline / t})
        for row, t in zip(rows, times, strict=True)
    ]
    network.save(output / name)
    save_plan_picture(network.plan, output / f"{name}.png")
    network.report(output / f"{name}.html", title=part.title)
    exact = torch.equal(network(images), network.reference(images))
    return summary(part, network.plan, budget, rows, exact, network)


def compile_with_room(part: Part, budget: Budget) -> tuple[CompiledNetwork, Budget]:
    """Compile within ``budget``, or within twice its latency.

    The budget follows from times that were measured a moment ago; where the machine has become
    much slower since, nothing fits it any more.
    """
    try:
        return compile_session(part.session, budget), budget
    except InfeasibleBudgetError as error:
        if budget.latency_ms is None:
            raise
        log.warning("%s; going on with twice the latency", error.message)
    wider = replace(budget, latency_ms=2 * budget.latency_ms)
    return compile_session(part.session, wider), wider


def run_analytic(part: Part, budget: Budget, output: Path, name: str) -> dict[str, Any]:
    """Plan for a described accelerator: predicted latency, accuracy by the oracle."""
    plan = part.session.solve(budget)
    images = part.digits.held_out[0]
    usages = part.uniform_costs()
    rows = []
    for c in part.candidates:
        uniform = part.uniform_plan(c, budget)
        scores = part.session.reference(uniform.assignment)(images)
        rows.append(part.row(f"all {c}", uniform, scores, fits(usages[c], budget), True))
    scores = part.session.reference(plan.assignment)(images)
    rows.append(part.row("plan", plan, scores, True, False))
    save_plan_picture(plan, output / f"{name}.png")
    write_report(plan, output / f"{name}.html", title=part.title)
    return summary(part, plan, budget, rows, None, None)


def summary(
    part: Part,
    plan: Plan,
    budget: Budget,
    rows: list[Row],
    exact: bool | None,
    network: CompiledNetwork | None,
) -> dict[str, Any]:
    """Return what one part shows, JSON-ready, and print it."""
    inside = [row for row in rows if row.uniform and row.within]
    best = min(inside, key=lambda row: row.loss) if inside else None
    result = {
        "title": part.title,
        "target": plan.target,
        "budget": budget.given(),
        "rows": [asdict(row) for row in rows],
        "mixed": len(set(plan.assignment.values())) > 1,
        "best_uniform": None if best is None else best.name,
        "better_than_best_uniform": best is None or rows[-1].loss < best.loss,
        "bit_exact": exact,
        "assignment": dict(plan.assignment),
        "certificate": dict(plan.certificate),
        "verification": asdict(network.verification) if network and network.verification else None,
        "notes": list(plan.notes),
    }
    print_plan(result)
    return result


def between(low: float, high: float, share: float) -> float:
    """Return the point that lies ``share`` of the way from low to high."""
    return low + share * (high - low)


def convolutional_budget(part: Part) -> Budget:
    """Latency nearer to fp32 than to the fastest uniform; size for about five bits a weight.

    The network takes 15 to 30 µs: on a shared machine measurements differ by a third.
    """
    usages = part.uniform_costs()
    latencies = {name: usage["latency_us"] / 1e3 for name, usage in usages.items()}
    size = between(usages["w4a8"]["size_bytes"], usages["w8a8"]["size_bytes"], 0.35)
    latency = between(min(latencies.values()), latencies["fp32"], 0.75)
    return Budget(latency_ms=latency, size_mb=size / 1e6)


def bit_serial_budget(part: Part) -> Budget:
    """A latency two fifths of the way from all w2a2 to all w8a8."""
    usages = part.uniform_costs()
    fast, slow = usages["w2a2"]["latency_us"], usages["w8a8"]["latency_us"]
    return Budget(latency_ms=between(fast, slow, 0.4) / 1e3)


def memory_bound_budget(part: Part) -> Budget:
    """A latency that 8-bit weights miss and 4-bit weights keep easily."""
    usages = part.uniform_costs()
    fast, slow = usages["w4a8"]["latency_us"], usages["w8a8"]["latency_us"]
    return Budget(latency_ms=between(fast, slow, 0.6) / 1e3)


def run_demo(output: Path, quick: bool = False) -> dict[str, Any]:
    """Train, plan, deploy and measure three networks; write artifacts and pictures to ``output``.

    Args:
        output: Folder, created where missing.
        quick: Train for fewer epochs and use narrower linear layers.
    """
    start = time.monotonic()
    torch.manual_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    net = train(DigitsNet(), digits, 4 if quick else 10, "the convolutional net")
    mlp = train(WideMlp(1024 if quick else 2048), digits, 2 if quick else 5, "the wide linear net")
    print_title(len(digits.held_out[0]))
    first = Part(
        "(a) convolutional net on this CPU, latency and size budgets together",
        net,
        digits,
        "local",
        ["fp32", "bf16", "w8a8", "w6a8", "w4a8", "w3a8", "w2a8"],
    )
    second = Part(
        "(b) the same net on a bit-serial accelerator (analytic), latency budget",
        net,
        digits,
        "bit_serial",
        ["w8a8", "w6a6", "w4a8", "w4a4", "w3a3", "w2a4", "w2a2"],
    )
    third = Part(
        "(c) large linear layers, one sample at a time, latency budget",
        mlp,
        digits,
        "local",
        ["fp32", "bf16", "w8a8", "w4a8", "w2a8"],
    )
    parts = [
        run_measured(first, convolutional_budget(first), output, "a_convolutional"),
        run_analytic(second, bit_serial_budget(second), output, "b_bit_serial"),
        run_measured(third, memory_bound_budget(third), output, "c_linear"),
    ]
    return {"parts": parts, "output": str(output), "seconds": time.monotonic() - start}
