"""``mpq search``: learn the bits of every site on small labelled data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.plan import check_output
from mpq_compile.commands.request import load, read_budget, read_candidates, read_constraints
from mpq_compile.commands.views import number
from mpq_compile.cost.targets import resolve_target
from mpq_compile.registry import SEARCHES
from mpq_compile.search.policy import Policy


@grouped
def search(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="policy.json", help="Write the policy.")
    ],
    bops: options.Bops = None,
    method: Annotated[
        str, typer.Option("--method", help="asga (sharpness-aware) or plain (half the time).")
    ] = "asga",
    target: options.Target = "local",
    candidates: options.Candidates = None,
    constraint: options.Constraint = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples of a step.")] = 32,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", help="labels, distillation (from the float network: no labels) or both."
        ),
    ] = "labels",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="FILE.safetensors", help="Keep the search, and go on from it."
        ),
    ] = None,
    allow_float: options.AllowFloat = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> Outcome:
    """Learn the bits of every site on small labelled data, within --bops.

    `mpq plan --policy` takes them over for the same architecture trained on other data.
    """
    check_output(output, "the policy")
    budget = read_budget(bops=bops)
    names, pinned = read_candidates(candidates), read_constraints(constraint)
    resolve_target(target)
    SEARCHES.load(method)
    loaded = load(model, data, images)
    from mpq_compile.searching import search_policy

    policy = search_policy(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        target=target,
        budget=budget,
        method=method,
        candidates=names,
        constraints=pinned,
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        seed=seed,
        allow_float=allow_float,
        checkpoint=checkpoint,
    )
    policy.save(output)
    return _outcome(policy, output)


def _outcome(policy: Policy, output: Path) -> Outcome:
    counts = Counter(policy.assignment.values())

    def show(console: Console) -> None:
        sites = ", ".join(f"{count} × {name}" for name, count in counts.most_common())
        console.print(f"{policy.method}: {sites}; {number(policy.bops)} BOPs")
        console.print(f"policy written to {output}; `mpq plan --policy {output}` takes it over")

    return Outcome(data=policy.to_json(), show=show)
