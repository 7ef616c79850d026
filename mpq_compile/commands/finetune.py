"""``mpq finetune``: train a planned network, build it, and write its artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpq_compile.commands import options
from mpq_compile.commands.compile import artifact_outcome, check_folder
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.request import Loaded, load
from mpq_compile.training.defaults import BATCH_SIZE, EPOCHS, RATE

if TYPE_CHECKING:
    from mpq_compile.runtime.network import CompiledNetwork
    from mpq_compile.types import Plan


@grouped
def finetune(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    plan: Annotated[
        Path, typer.Option("--plan", metavar="plan.json", help="What `mpq plan -o` wrote.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the artifact.")
    ],
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = EPOCHS,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of a step.")
    ] = BATCH_SIZE,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Largest move of a weight in a step, in codes.")
    ] = RATE,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", help="distillation (from the float network: no labels), labels or both."
        ),
    ] = "distillation",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE.safetensors",
            help="Keep what was trained, and go on from it.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Another target than the plan's.")
    ] = None,
    samples: options.Samples = None,
    allow_float: options.AllowFloat = False,
    no_tune: options.NoTune = False,
    seed: options.Seed = 0,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not measure.")] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Train the weights, scales and biases of a planned network; its bits stay.

    The data are trained on, and ranges are taken from them too.
    """
    check_folder(output)
    given = read_plan(plan)
    network = _trained(
        given,
        load(model, data, images),
        target=target,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        loss=loss,
        checkpoint=checkpoint,
        samples=samples,
        allow_float=allow_float,
        seed=seed,
        verify=not no_verify,
        tuned=not no_tune,
    )
    network.save(output)
    return artifact_outcome(network, output)


def _trained(plan: Plan, loaded: Loaded, **how: object) -> CompiledNetwork:
    from mpq_compile.finetuning import finetune

    return finetune(
        plan,
        loaded.calibration,
        loaded.model,
        loaded.example_inputs,
        **how,  # type: ignore[arg-type]
    )
