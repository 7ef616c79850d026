"""The search from end to end: a trained network and small labelled data → a policy."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.search.branches import BranchedGraph
from mpq_compile.search.checkpoint import load_snapshot, save_snapshot
from mpq_compile.search.likeliest import assignment_bops, check_bops, likeliest
from mpq_compile.search.objective import labelled_head
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.policy import POLICY_VERSION, Policy
from mpq_compile.search.run import Run
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.checkpoint import run_key
from mpq_compile.sensitivity.slices import Slice, size_of

# Fewer samples are learned by heart: their gradients tell nothing of others.
FEWEST = 64


def search(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Choices,
    options: SearchOptions,
    checkpoint: Path | None = None,
) -> Policy:
    """Search bits for every site; the network and its weights are left as they are.

    Args:
        network: The prepared network, trained.
        calibration: Ranges of its tensors.
        batches: Labelled samples, 64 at least.
        choices: Candidates of each site.
        options: How.
        checkpoint: File that is written after each epoch; where it is there, the search goes on
            from it.

    Raises:
        CalibrationError: Labels are missing or wrong, there are too few samples, or the search
            diverged.
        InfeasibleBudgetError: The cheapest assignment is above the bound.
        PlanError: The checkpoint is of another search, or cannot be read.
    """
    samples = _checked_count(batches, options.method)
    check_bops(network, choices, options.bops)
    quantized = QuantizedGraph(network, calibration)
    head = labelled_head(quantized, batches, options.method)
    key = run_key(repr(options), quantized, _slices(batches), choices)
    run = Run(graph=BranchedGraph(network, calibration, choices), head=head, options=options)
    if checkpoint is not None and (found := load_snapshot(checkpoint, key)) is not None:
        run.restore(found)
    with counted(options.epochs, options.method) as advance:
        advance(run.epoch)
        while run.epoch < options.epochs:
            run.advance(batches)
            if checkpoint is not None:
                save_snapshot(checkpoint, run.snapshot(), key)
            advance(1)
    return _policy(run, samples, key)


def _policy(run: Run, samples: int, key: str) -> Policy:
    options, network = run.options, run.graph.network
    scores = run.graph.scores()
    assignment = likeliest(network, scores, options.bops)
    return Policy(
        version=POLICY_VERSION,
        method=options.method,
        assignment=assignment,
        scores=scores,
        bops=assignment_bops(network, assignment),
        seed=options.seed,
        provenance={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "search": key,
            "options": json.dumps(asdict(options)),
            "samples": str(samples),
            "loss": f"{run.loss:.6g}",
        },
    )


def _checked_count(batches: Sequence[Batch], method: str) -> int:
    samples = sum(size_of(batch) for batch in batches)
    if samples < FEWEST:
        raise CalibrationError(
            f"too few samples for the search {method!r}",
            expected=f"at least {FEWEST} labelled samples",
            found=str(samples),
            remedy="give more, or plan with a metric, such as metric='kl'",
        )
    return samples


def _slices(batches: Sequence[Batch]) -> list[Slice]:
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + size_of(batch))
    return [Slice(start=s, batch=b) for s, b in zip(starts, batches, strict=False)]
