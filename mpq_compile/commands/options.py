"""Options that several commands share: annotated types, and groups of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mpq_compile.commands.completion import names_of, profile_names
from mpq_compile.registry import METRICS, ROUNDINGS, SOLVERS

_BUDGET = "Budget"
_CHOICE = "Choice of bits"
_RECIPE = "Quantization"
_IMAGES = "Images"

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]

_MODEL = typer.Argument(
    metavar="MODEL",
    help="file.py:factory (returns a module, or a module and example inputs), or a .pt2 file.",
    show_default=False,
)
_DATA_FILE = typer.Option(
    "--data",
    metavar="X.npz|FOLDER",
    help="Samples: arrays batch-first, named like the model's inputs or in their order, labels "
    "optional; or images, folders in it are classes.",
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
DataFile = Annotated[Path, _DATA_FILE]
OptionalDataFile = Annotated[Path | None, _DATA_FILE]
Artifact = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Artifact that `mpq compile -o` wrote.", show_default=False),
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="Profile by name, its YAML file, or a device: rpc://host:port/KEY.",
        autocompletion=profile_names,
    ),
]
RunTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Another device than the artifact's own: local, rpc://host:port/KEY.",
    ),
]
AllowFloat = Annotated[
    bool, typer.Option("--allow-float", help="Run operators without integer rule in float.")
]
MeasureS = Annotated[
    float | None,
    typer.Option(
        "--measure-s",
        min=0,
        help="Tune and measure for about so many seconds; estimate what is left.",
    ),
]
NoTune = Annotated[
    bool,
    typer.Option(
        "--no-tune", help="Neither search nor use schedules: leave them to the cost model."
    ),
]

LatencyMs = Annotated[
    float | None,
    typer.Option("--latency-ms", help="Bound on the median.", rich_help_panel=_BUDGET),
]
LatencyP95Ms = Annotated[
    float | None,
    typer.Option("--latency-p95-ms", help="On the 95th percentile.", rich_help_panel=_BUDGET),
]
SizeMb = Annotated[
    float | None,
    typer.Option("--size-mb", help="On the stored weights, 10⁶ bytes.", rich_help_panel=_BUDGET),
]
Bops = Annotated[
    float | None,
    typer.Option("--bops", help="On MACs × weight × activation bits.", rich_help_panel=_BUDGET),
]
PeakActivationMb = Annotated[
    float | None,
    typer.Option(
        "--peak-activation-mb", help="On a site's inputs and outputs.", rich_help_panel=_BUDGET
    ),
]
EnergyMj = Annotated[
    float | None,
    typer.Option("--energy-mj", help="Where the target knows it.", rich_help_panel=_BUDGET),
]
AvgBits = Annotated[
    float | None,
    typer.Option("--avg-bits", help="On the mean bits of a weight.", rich_help_panel=_BUDGET),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="On the measured drop: by --evaluate, else % of samples whose top-1 differs.",
        rich_help_panel=_BUDGET,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option("--max-loss", help="On the loss, in the metric's unit.", rich_help_panel=_BUDGET),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--evaluate",
        metavar="FILE.py:FUNCTION",
        help="evaluate(net) -> float, higher is better; or top1, kl, noise, accuracy.",
        rich_help_panel=_BUDGET,
    ),
]
Evaluations = Annotated[
    int,
    typer.Option(
        "--evaluations",
        min=1,
        help="Most assignments measured to keep --max-drop.",
        rich_help_panel=_BUDGET,
    ),
]
Minimize = Annotated[
    str | None,
    typer.Option(
        "--minimize",
        help="With --max-drop or --max-loss: latency, size, bops or energy.",
        rich_help_panel=_BUDGET,
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        help="Sensitivity metric.",
        rich_help_panel=_CHOICE,
        autocompletion=names_of(METRICS),
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        "--solver",
        help="Solver.",
        rich_help_panel=_CHOICE,
        autocompletion=names_of(SOLVERS),
    ),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        "--candidates",
        metavar="A,B,…",
        help="Such as w8a8,w4a8; else the target's defaults.",
        rich_help_panel=_CHOICE,
    ),
]
Constraint = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        metavar="SITE=CAND",
        help="Pin a site, or all sites of a module (id, path or re:PATTERN); repeatable.",
        rich_help_panel=_CHOICE,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Recorded in the plan.", rich_help_panel=_CHOICE)]
Observer = Annotated[
    str | None,
    typer.Option(
        "--observer",
        help="Ranges of activations: auto, mse, mse2, mse4, mse16, minmax, percentile, entropy.",
        show_default="auto",
        rich_help_panel=_RECIPE,
    ),
]
Correction = Annotated[
    str | None,
    typer.Option(
        "--correction",
        help="What is fitted to channels of rounded weights: affine, bias, analytic or none.",
        show_default="affine",
        rich_help_panel=_RECIPE,
    ),
]
Rounding = Annotated[
    str | None,
    typer.Option(
        "--rounding",
        help="How weights below 8 bits are rounded in the end: gptq, per_site, adaround, brecq, "
        "qdrop or nearest.",
        show_default="gptq",
        rich_help_panel=_RECIPE,
        autocompletion=names_of(ROUNDINGS),
    ),
]
SensitivityOn = Annotated[
    str | None,
    typer.Option(
        "--sensitivity-on",
        help="Weights that sensitivities are measured on: nearest or rounded (as per_site).",
        show_default="nearest",
        rich_help_panel=_RECIPE,
    ),
]
Equalize = Annotated[
    str | None,
    typer.Option(
        "--equalize",
        help="How scales of channels are evened out between sites: auto, cross_layer or none.",
        show_default="none",
        rich_help_panel=_RECIPE,
    ),
]
Migration = Annotated[
    str | None,
    typer.Option(
        "--migration",
        help="How they move into linear layers: smoothquant, awq or none.",
        show_default="none",
        rich_help_panel=_RECIPE,
    ),
]

Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        help="Most samples that are used, drawn where they can be.",
        show_default="all of a file, 256 of a folder",
        rich_help_panel=_RECIPE,
    ),
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        "--held-out",
        min=0.0,
        max=0.5,
        metavar="SHARE",
        help="Samples that nothing is fitted to, to measure drops on.",
        show_default="0.25 where a drop is measured without a function",
        rich_help_panel=_RECIPE,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="R,G,B",
        help="Taken off each channel of images in [0, 1]; one number does for all.",
        show_default="none",
        rich_help_panel=_IMAGES,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        metavar="R,G,B",
        help="What each channel is divided by after that.",
        show_default="none",
        rich_help_panel=_IMAGES,
    ),
]
Resize = Annotated[
    int | None,
    typer.Option(
        "--resize",
        metavar="PIXELS",
        min=1,
        help="Shorter side of images before the centre is cut out.",
        show_default="as short as fits",
        rich_help_panel=_IMAGES,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is done to images of a folder."""

    mean: Mean = None
    std: Std = None
    resize: Resize = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what a network costs."""

    latency_ms: LatencyMs = None
    latency_p95_ms: LatencyP95Ms = None
    size_mb: SizeMb = None
    bops: Bops = None
    peak_activation_mb: PeakActivationMb = None
    energy_mj: EnergyMj = None
    avg_bits: AvgBits = None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is minimised, and how: by default the loss."""

    max_drop: MaxDrop = None
    max_loss: MaxLoss = None
    minimize: Minimize = None
    evaluate: Evaluate = None
    evaluations: Evaluations = 16
    solver: Solver = "exact"
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is chosen from, and by which sensitivity."""

    metric: Metric = "sqnr"
    candidates: Candidates = None
    constraint: Constraint = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fields of ``mpq_compile.recipe.Recipe``; None where its default is meant."""

    observer: Observer = None
    correction: Correction = None
    rounding: Rounding = None
    sensitivity_on: SensitivityOn = None
    equalize: Equalize = None
    migration: Migration = None
    samples: Samples = None
    held_out: HeldOut = None


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The target, and what is measured there."""

    target: Target = "local"
    allow_float: AllowFloat = False
    no_tune: NoTune = False
    measure_s: MeasureS = None
