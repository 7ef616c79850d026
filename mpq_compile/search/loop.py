"""The search from end to end: a trained network and a small labelled data set → a policy."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict

import torch

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.search.branches import BranchedGraph
from mpq_compile.search.likeliest import assignment_bops, check_bops, likeliest, spend
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.policy import POLICY_VERSION, Policy
from mpq_compile.search.run import Run
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.labels import class_index
from mpq_compile.sensitivity.slices import Slice, size_of
from mpq_compile.training.epochs import Epochs
from mpq_compile.training.loss import Loss
from mpq_compile.training.state import TrainingState

# Fewer samples are learned by heart: their gradients tell nothing of others.
FEWEST = 64


def search(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    data: Epochs,
    choices: Choices,
    options: SearchOptions,
    seed: int = 0,
    state: TrainingState | None = None,
) -> Policy:
    """Search bits for every site; the network and its weights are left as they are.

    Args:
        network: The prepared network, trained.
        calibration: Ranges of its tensors.
        batches: The samples, 64 at least, labelled where the loss needs it.
        data: The same, in the order in which they are trained on.
        choices: Candidates of each site.
        options: How.
        seed: Recorded in the policy.
        state: Where the search is kept after each epoch, and gone on from.

    Raises:
        CalibrationError: Labels are missing or wrong, there are too few samples, or the search
            diverged.
        InfeasibleBudgetError: The cheapest assignment is above the bound.
        PlanError: The checkpoint is of another search, or damaged.
    """
    samples = _checked_count(batches, options.method)
    check_bops(network, choices, options.bops)
    heads = _checked_heads(network, calibration, batches, options)
    loss = Loss(name=options.loss, teacher=network.module, heads=heads)
    run = Run(graph=BranchedGraph(network, calibration, choices), loss=loss, options=options)
    if state is not None:
        run.restore(state)
    with counted(options.epochs, options.method) as advance:
        advance(run.epoch)
        while run.epoch < options.epochs:
            run.advance(data)
            if state is not None:
                run.save(state)
            advance(1)
    scores = run.graph.scores()
    assignment = likeliest(network, scores, options.bops)
    if options.bops is not None:
        assignment = spend(network, scores, assignment, options.bops)
    return Policy(
        version=POLICY_VERSION,
        method=options.method,
        assignment=assignment,
        scores=scores,
        bops=assignment_bops(network, assignment),
        seed=seed,
        provenance={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "options": json.dumps(asdict(options)),
            "samples": str(samples),
            "steps": str(data.steps * options.epochs),
        },
    )


def _checked_count(batches: Sequence[Batch], method: str) -> int:
    samples = sum(size_of(batch) for batch in batches)
    if samples < FEWEST:
        raise CalibrationError(
            f"too few samples for the search {method!r}",
            expected=f"at least {FEWEST} samples",
            found=str(samples),
            remedy="give more, or plan with a metric, such as metric='kl'",
        )
    return samples


def _checked_heads(
    network: Network, calibration: Calibration, batches: Sequence[Batch], options: SearchOptions
) -> tuple[Head, ...]:
    """Return how outputs are read, once labels are there and fit them."""
    for index, batch in enumerate(batches):
        if batch.labels is None and options.loss != "distillation":
            raise CalibrationError(
                f"the search {options.method!r} needs labels",
                where=f"batch {index}",
                expected="batches of (inputs, labels)",
                found="inputs only",
                remedy="give labels, or search with loss='distillation', which needs none",
            )
    graph = QuantizedGraph(network, calibration)
    heads = find_heads(graph, [Slice(start=0, batch=batches[0])])
    classified = [head for head in heads if head.classes is not None]
    if options.loss != "distillation" and len(classified) == 1:
        outputs = graph.float_values(batches[0])["output"]
        _, *shape = classified[0].scores(outputs).shape
        for index, batch in enumerate(batches):
            assert batch.labels is not None
            class_index(batch.labels, (size_of(batch), *shape), f"batch {index}")
    return heads
