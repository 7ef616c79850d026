"""Fine-tuning of a planned network; what comes out is built like any other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.closed_loop import verified
from mpq_compile.cost.targets import TargetLike
from mpq_compile.data.sources import source_of
from mpq_compile.deploy import complete_assignment
from mpq_compile.digest import content_digest
from mpq_compile.quant.calibration import Calibration
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.session import Session
from mpq_compile.training.defaults import BATCH_SIZE, EPOCHS, RATE
from mpq_compile.training.epochs import Epochs, read_epochs
from mpq_compile.training.loss import Loss, check_loss
from mpq_compile.training.positive import check_count
from mpq_compile.training.state import TrainingState
from mpq_compile.training.student import Student
from mpq_compile.training.train import Schedule, judge, train
from mpq_compile.types import Plan

log = logging.getLogger(__name__)

# Samples that tell whether training has helped.
_JUDGED = 512
# Of a loader, how many batches give ranges and codes to start from.
_CALIBRATION_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What training has found.

    Args:
        calibration: Codes, scales, biases and ranges of the better network, trained or not.
        before, after: What judges the network on the first samples: the error of its outputs as
            a share of their power, or the cross-entropy, or both.
        steps: Batches that were trained on.
    """

    calibration: Calibration
    before: float
    after: float
    steps: int

    @property
    def kept(self) -> bool:
        """Tell whether the trained network is the better one."""
        return self.after < self.before

    @property
    def note(self) -> str:
        """What a plan says of it."""
        change = f"{self.before:.4g} before, {self.after:.4g} after"
        if self.kept:
            return f"fine-tuned in {self.steps} steps: {change}"
        return f"fine-tuning in {self.steps} steps made it no better, so it is as it was: {change}"


def finetune(
    plan: Plan,
    loader: Any,
    model: Any,
    example_inputs: Any,
    calibration: Any = None,
    target: TargetLike | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    rate: float = RATE,
    loss: str = "distillation",
    checkpoint: str | Path | None = None,
    allow_float: bool = False,
    seed: int = 0,
    verify: bool = True,
    tuned: bool = True,
    samples: int | None = None,
) -> CompiledNetwork:
    """Train the weights, scales and biases of a planned network, and build it.

    The bits stay those of the plan, and so do costs. Training starts from what the plan's recipe
    finds without it (rounding, ranges); step sizes are learned (LSQ, arXiv 1902.08153), gradients
    pass straight through rounding, and the float network is the teacher, site by site. Batch
    norms are folded before, so their statistics stay. Where training has not helped on the first
    samples, the network is built as it was, and the plan's notes say so.

    Args:
        plan: Of :func:`mpq_compile.plan`.
        loader: Batches to train on, as ``calibration``; a ``DataLoader`` is iterated over anew for
            each epoch, anything else is pooled and shuffled.
        model, example_inputs: Those that the plan was made of.
        calibration: Input batches for ranges and rounding; None takes the loader's first.
        target: As for :func:`mpq_compile.plan`; None is the plan's.
        epochs: Passes over the data.
        batch_size: Samples of a step, where the data are pooled.
        rate: Largest move of a weight in a step, in codes.
        loss: "distillation" (no labels), "labels" or "both".
        checkpoint: A safetensors file: what was trained is kept there, and an interrupted run goes
            on from it.
        allow_float, seed, verify, tuned: As for :func:`mpq_compile.compile`.
        samples: Most samples to train on where the data are pooled; None for all that are given,
            or for 256 of a data set or a folder of images.

    Raises:
        PlanError: The plan does not fit the model, the checkpoint is of another run, or
            ``epochs``, ``batch_size`` or ``rate`` is not positive.
        CalibrationError: No data, no labels where they are needed, or a loss that is not finite.
    """
    # What is asked for is checked before anything that takes time.
    check_loss(loss)
    check_count("batch_size", batch_size)
    schedule = Schedule(epochs=epochs, rate=rate)
    if isinstance(loader, Iterator):
        loader = list(loader)  # it is read twice
    session = Session(
        model,
        example_inputs,
        _some(loader) if calibration is None else calibration,
        plan.target if target is None else target,
        recipe=Recipe.of_plan(plan.provenance),
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
    )
    assignment = complete_assignment(session.network, plan.assignment)
    data = read_epochs(loader, session.network, batch_size, seed, samples)
    path = None if checkpoint is None else Path(checkpoint)
    found = finetune_session(session, assignment, data, schedule, loss, path)
    session.keep(assignment, found.calibration)
    notes = [*plan.notes, found.note]
    network = session.build(replace(plan, assignment=assignment, notes=notes))
    if verify and not session.analytic:
        verified(network, plan.budget, 1)
    return network


def finetune_session(
    session: Session,
    assignment: dict[str, str],
    epochs: Epochs,
    schedule: Schedule,
    loss: str = "distillation",
    checkpoint: Path | None = None,
) -> Finetuned:
    """Train an assignment within a session; nothing is built."""
    start = session.rounded_for(assignment)
    student = Student(session.network, start, assignment, session.allow_float)
    judged = _first(epochs)
    criterion = Loss(
        name=loss,
        teacher=student.teacher(),
        outputs=student.outputs,
        heads=() if loss == "distillation" else _heads(session, start, judged[0]),
    )
    before = judge(student, criterion, judged)
    state = None
    if checkpoint is not None:
        run = _run(session, assignment, epochs, schedule, loss)
        state = TrainingState(path=checkpoint, run=run)
    steps = train(student, criterion, epochs, schedule, state)
    after = judge(student, criterion, judged)
    found = Finetuned(
        calibration=student.trained() if after < before else start,
        before=before,
        after=after,
        steps=steps,
    )
    log.info("%s", found.note)
    return found


def _first(epochs: Epochs) -> list[Batch]:
    """Return the first batches, to judge by."""
    chosen: list[Batch] = []
    samples = 0
    for batch in epochs.epoch(0):
        chosen.append(batch)
        samples += len(batch.inputs[0])
        if samples >= _JUDGED:
            break
    return chosen


def _heads(session: Session, calibration: Calibration, batch: Batch) -> Sequence[Head]:
    graph = QuantizedGraph(session.network, calibration)
    return find_heads(graph, [Slice(start=0, batch=batch)])


def _some(loader: Any) -> Any:
    """Return the first batches of a loader, enough to calibrate on."""
    whole = not isinstance(loader, Iterable) or isinstance(loader, (Tensor, Sequence))
    if whole or source_of(loader).single:
        return loader
    return list(islice(loader, _CALIBRATION_BATCHES))


def _run(
    session: Session,
    assignment: Mapping[str, str],
    epochs: Epochs,
    schedule: Schedule,
    loss: str,
) -> str:
    """Return what tells one run of training from another."""
    return str(
        content_digest(
            session.digest(),
            session.network.constants(),
            [batch.inputs for batch in session.batches],
            dict(assignment),
            session.recipe.provenance(),
            vars(schedule),
            epochs.steps,
            loss,
            session.seed,
        )
    )
