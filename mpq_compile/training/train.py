"""The loop: Adam with one step size a kind of parameter, a cosine down to nothing.

What comes out are the means of the parameters over the second half of the steps (Polyak and
Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992): codes that flip with every
batch settle where they are more often.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.progress import counted
from mpq_compile.training.epochs import Epochs
from mpq_compile.training.learned import LearnedRange, LearnedWeight
from mpq_compile.training.loss import Loss
from mpq_compile.training.positive import check_count, check_rate
from mpq_compile.training.state import MEAN, TrainingState
from mpq_compile.training.student import Student

log = logging.getLogger(__name__)

# Of all steps, how many the step size rises in.
_WARM = 0.05
# A move of a scale moves the largest code by so many times what a step moves a weight by.
_SCALES = 32.0
_SAVED_EVERY_S = 60.0
# Of all steps, how many pass before parameters are averaged.
_UNSETTLED = 0.5


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Args:
        epochs: Passes over the data.
        rate: Largest move of a weight in a step, in codes. One number does for all layers,
            whatever their scale: Adam's step does not depend on the size of a gradient [derived].

    Raises:
        PlanError: A number is not positive, or not finite.
    """

    epochs: int
    rate: float

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_rate("rate", self.rate)

    def at(self, step: int, total: int) -> float:
        """Return the share of ``rate`` at a step."""
        warm = max(1, round(_WARM * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def train(
    student: Student,
    loss: Loss,
    epochs: Epochs,
    schedule: Schedule,
    state: TrainingState | None = None,
) -> int:
    """Train all learned parameters in place; return the number of steps.

    Raises:
        CalibrationError: The loss is not finite.
        PlanError: The checkpoint is of another run.
    """
    groups = _groups(student, schedule.rate)
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = schedule.epochs * epochs.steps
    done = 0 if state is None else state.load(parameters, optimizer)
    saved = time.monotonic()
    with counted(total, "fine-tune") as advance:
        advance(done)
        for step, batch in _remaining(epochs, schedule.epochs, done):
            share = schedule.at(step, total)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = share * rate
            _step(student, loss, batch, optimizer, step)
            done = step + 1
            _average(optimizer, parameters, done - int(_UNSETTLED * total))
            if state is not None and time.monotonic() - saved > _SAVED_EVERY_S:
                state.save(done, parameters, optimizer)
                saved = time.monotonic()
            advance(1)
    if state is not None:
        state.save(done, parameters, optimizer)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(optimizer.state[parameter].get(MEAN, parameter))
    return done


def _average(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], count: int
) -> None:
    """Take parameters into their means as the ``count``-th values; none before the first.

    Means lie with the optimizer's moments, so that an interrupted run goes on with them. What has
    no moments was never moved.
    """
    moved = [p for p in parameters if optimizer.state[p]] if count > 0 else []
    for parameter in moved:
        value = parameter.detach()
        optimizer.state[parameter].setdefault(MEAN, value.clone()).lerp_(value, 1 / count)


def _groups(student: Student, rate: float) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = []
    for learned in student.learned:
        for name, parameter in learned.named_parameters():
            groups.append({"params": [parameter], "lr": rate * _unit(learned, name)})
    return groups


def _unit(learned: nn.Module, name: str) -> float:
    """Return the size of a parameter's step where that of a weight is one code."""
    if name == "log_scale":
        assert isinstance(learned, (LearnedWeight, LearnedRange))
        return _SCALES / learned.spec.qmax
    return 1.0


def _remaining(epochs: Epochs, count: int, done: int) -> Iterator[tuple[int, Batch]]:
    """Iterate over the steps that are left; batches of steps that are done are passed over."""
    for number in range(done // max(1, epochs.steps), count):
        first = number * epochs.steps
        for index, batch in enumerate(epochs.epoch(number)):
            if first + index >= done and index < epochs.steps:
                yield first + index, batch


def _step(
    student: Student, loss: Loss, batch: Batch, optimizer: torch.optim.Optimizer, step: int
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        value = loss(student.module(*batch.inputs), batch)
    if not value.isfinite():
        raise CalibrationError(
            "the loss is not finite",
            where=f"training step {step}",
            expected="a finite number",
            found=f"{value.item()}",
            remedy="look for samples that overflow in float, or lower the rate",
        )
    value.backward()
    optimizer.step()


def judge(student: Student, loss: Loss, batches: Sequence[Batch]) -> float:
    """Return what judges a student, averaged over batches."""
    with torch.no_grad():
        found = [loss.judged(student.module(*batch.inputs), batch) for batch in batches]
    return float(torch.stack(found).mean())
