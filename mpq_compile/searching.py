"""A policy is searched on a small data set and moved to the network of a large one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpq_compile.cost.targets import TargetLike
from mpq_compile.digest import content_digest
from mpq_compile.errors import PlanError
from mpq_compile.quant.observers import AUTO
from mpq_compile.recipe import Recipe
from mpq_compile.search.loop import search
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.policy import Policy
from mpq_compile.session import Session
from mpq_compile.training.epochs import Epochs, read_epochs
from mpq_compile.training.positive import check_count
from mpq_compile.training.state import TrainingState
from mpq_compile.types import Budget

BATCH_SIZE = 32


def search_policy(
    model: Any,
    example_inputs: Any,
    data: Any,
    target: TargetLike = "local",
    budget: Budget | Mapping[str, float] | None = None,
    method: str = "asga",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    epochs: int = 10,
    batch_size: int = BATCH_SIZE,
    loss: str = "labels",
    price: float | None = None,
    seed: int = 0,
    observer: str = AUTO,
    allow_float: bool = False,
    checkpoint: str | Path | None = None,
) -> Policy:
    """Learn the bits of every site on small labelled data (ASGA, arXiv 2505.04877).

    Weights are trained with the bits, and forgotten: what is returned is moved by site ids to the
    same architecture on other data, by ``mpq.assign(model, x, calibration, policy)``.

    Args:
        model: A trained network, as for :func:`mpq_compile.plan`.
        example_inputs: Tensor or tuple of tensors of the deployed shapes.
        data: Batches of (inputs, labels), 64 samples at least; a ``DataLoader`` is iterated over
            anew for each epoch, anything else is pooled and shuffled.
        target: Says which candidates there are.
        budget: ``Budget(bops=...)``, kept exactly; no other bound is known to a search.
        method: "asga" looks for weights whose neighbourhood has a low loss too, so that the
            policy does not hang on these data; "plain" does not, and takes half the time.
        candidates: Names to choose from; None for the target's defaults.
        constraints: As for :func:`mpq_compile.plan`.
        epochs: Passes over the data.
        batch_size: Samples of a step, where the data are pooled.
        loss: "labels", "distillation" (from the float network; no labels) or "both".
        price: Instead of a budget, λ of the published loss.
        seed: Of the order of samples.
        observer: Range estimator of activations.
        allow_float: As for :func:`mpq_compile.plan`.
        checkpoint: A safetensors file: the search is kept there after each epoch, and an
            interrupted one goes on from it.

    Raises:
        CalibrationError: Labels are missing or wrong, there are too few samples, or the search
            diverged.
        InfeasibleBudgetError: The cheapest assignment is above the budget.
        PlanError: The budget bounds something else, the checkpoint is of another search, or
            ``epochs`` or ``batch_size`` is not positive.
    """
    check_count("batch_size", batch_size)
    options = SearchOptions(
        method=method, bops=_bops(Budget.of(budget)), price=price, loss=loss, epochs=epochs
    )
    if isinstance(data, Iterator):
        data = list(data)  # it is read twice
    session = Session(
        model,
        example_inputs,
        data,
        target,
        candidates,
        constraints,
        recipe=Recipe(observer=observer, correction="none", rounding="nearest"),
        allow_float=allow_float,
        seed=seed,
    )
    read = read_epochs(data, session.network, batch_size, seed)
    return search_session(session, read, options, None if checkpoint is None else Path(checkpoint))


def search_session(
    session: Session, data: Epochs, options: SearchOptions, checkpoint: Path | None = None
) -> Policy:
    """Search a policy within a session; ``data`` are its batches, as they are trained on."""
    state = None
    if checkpoint is not None:
        state = TrainingState(path=checkpoint, run=_run(session, data, options))
    return search(
        session.network,
        session.calibration_for({}),
        session.batches,
        data,
        session.choices,
        options,
        session.seed,
        state,
    )


def _bops(budget: Budget) -> float | None:
    given = budget.given()
    others = [name for name in given if name != "bops"]
    if others:
        raise PlanError(
            "a search keeps a budget of BOPs and no other",
            expected="Budget(bops=...)",
            found=", ".join(others),
            remedy="bound bops alone, or use mpq.plan, which knows all budgets",
        )
    return given.get("bops")


def _run(session: Session, data: Epochs, options: SearchOptions) -> str:
    """Return what tells one search from another."""
    return str(
        content_digest(
            session.digest(),
            session.network.constants(),
            [(batch.inputs, batch.labels) for batch in session.batches],
            dict(session.choices),
            session.recipe.provenance(),
            options,
            data.steps,
            session.seed,
        )
    )
