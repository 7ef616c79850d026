"""What `plan`, `compile`, `frontier` and `profile` are asked for, read and checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mpq_compile.commands import options
from mpq_compile.commands.evaluation import read_evaluate
from mpq_compile.commands.image_options import read_folder, refuse_for_arrays
from mpq_compile.commands.model import read_model
from mpq_compile.cost.targets import resolve_target
from mpq_compile.data.images import ImageFolder
from mpq_compile.data.npz import in_order, read_npz, refuse_float64
from mpq_compile.data.samples import Samples
from mpq_compile.errors import CaptureError, PlanError
from mpq_compile.registry import METRICS, SOLVERS
from mpq_compile.types import Budget, Candidate


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its data.

    Args:
        model: ``nn.Module``, ``ExportedProgram``, or the path of a ``.pt2`` file.
        example_inputs: Those of the factory or of the exported program (None), else the first
            sample of the data.
        calibration: Arrays, with labels where the data has them; or a folder.
    """

    model: Any
    example_inputs: Any
    calibration: Samples | ImageFolder


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `plan`, `compile` and `frontier` are asked for; names are read as it is made.

    Raises:
        PlanError: A bound, a candidate or a constraint is not one.
    """

    model: str
    data: Path
    images: options.Images
    limits: options.Limits
    choice: options.Choice
    recipe: options.Recipe
    measuring: options.Measuring
    goal: options.Goal = field(default_factory=options.Goal)

    def __post_init__(self) -> None:
        _ = self.budget, self.candidates, self.constraints, self.evaluate

    @cached_property
    def budget(self) -> Budget:
        """All bounds."""
        goal = {"max_drop": self.goal.max_drop, "max_loss": self.goal.max_loss}
        return read_budget(**asdict(self.limits), **goal)

    @cached_property
    def candidates(self) -> list[str] | None:
        """Names to choose from."""
        return read_candidates(self.choice.candidates)

    @cached_property
    def constraints(self) -> dict[str, Sequence[str]]:
        """Candidates of pinned sites."""
        return read_constraints(self.choice.constraint)

    @cached_property
    def evaluate(self) -> Callable[..., float] | str | None:
        """What measures the drop."""
        return read_evaluate(self.goal.evaluate)

    @property
    def given_recipe(self) -> dict[str, Any]:
        """How the network is quantized: what was given, where it was."""
        return {name: value for name, value in asdict(self.recipe).items() if value is not None}

    def keywords(self) -> dict[str, Any]:
        """Return what every function that plans takes."""
        return {
            "target": self.measuring.target,
            "budget": self.budget,
            "metric": self.choice.metric,
            "candidates": self.candidates,
            "constraints": self.constraints,
            "evaluate": self.evaluate,
            "allow_float": self.measuring.allow_float,
            "tuned": not self.measuring.no_tune,
            "measure_s": self.measuring.measure_s,
            **self.given_recipe,
        }

    def goal_keywords(self) -> dict[str, Any]:
        """Return what ``plan`` and ``compile`` take beside."""
        goal = self.goal
        return {
            "solver": goal.solver,
            "seed": goal.seed,
            "minimize": goal.minimize,
            "evaluations": goal.evaluations,
        }

    def load(self) -> Loaded:
        """Check the names and reach the device first, then read the data and the model."""
        from mpq_compile.recipe import Recipe

        resolve_target(self.measuring.target)
        METRICS.load(self.choice.metric)
        SOLVERS.load(self.goal.solver)
        Recipe(**self.given_recipe)
        return load(self.model, self.data, self.images)


def load(model: str, data: Path, images: options.Images) -> Loaded:
    """Read the data, then the model."""
    if data.is_dir():
        return _with_images(model, read_folder(data, images))
    refuse_for_arrays(data, images)
    samples = read_npz(data)
    refuse_float64(samples)
    module, example = read_model(model)
    return _with_arrays(samples, module, example)


def _with_images(model: str, folder: ImageFolder) -> Loaded:
    from torch import nn

    module, example = read_model(model)
    if example is None and isinstance(module, nn.Module):
        raise CaptureError(
            "the size of the model's input is not known",
            where=model,
            expected="example inputs, to whose size images are brought",
            found="a model alone",
            remedy="return (model, example_inputs) from the factory",
        )
    return Loaded(model=module, example_inputs=example, calibration=folder)


def _with_arrays(samples: Samples, model: Any, example: Any) -> Loaded:
    from torch import nn

    # Exported programs have example inputs that say what shapes they were exported for.
    if example is None and isinstance(model, nn.Module):
        example = _first_sample(samples, model.forward)
    return Loaded(model=model, example_inputs=example, calibration=samples)


def _first_sample(samples: Samples, forward: Callable[..., Any]) -> tuple[Any, ...]:
    """Return the first sample of each array, in the order of the arguments."""
    import torch

    parameters = _positional(forward)
    if parameters is not None:
        needed = sum(parameter.default is parameter.empty for parameter in parameters)
        samples = in_order(samples, [parameter.name for parameter in parameters], needed)
    return tuple(torch.from_numpy(array[:1]) for array in samples.inputs.values())


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters that take arguments by their place; None where they are not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled code, such as TorchScript
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind in named]


def read_budget(**bounds: float | None) -> Budget:
    """Return the budget of the options; raise ``PlanError`` for a bound that is not above 0.

    A drop or a loss of 0 is allowed: nothing may be worse than float.
    """
    for name, value in bounds.items():
        zero = name in ("max_drop", "max_loss")
        if value is None or 0 < value < float("inf") or (zero and value == 0):
            continue
        raise PlanError(
            "a budget must be a positive number",
            where=f"--{name.replace('_', '-')}",
            expected="a finite number ≥ 0" if zero else "a finite number above 0",
            found=value,
            remedy="correct the number, or leave the option out",
        )
    return Budget(**bounds)


def read_candidates(text: str | None) -> list[str] | None:
    """Return the names of ``a,b,…``; raise ``PlanError`` where one is not a candidate."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise PlanError(
            "no candidate is named",
            where="--candidates",
            expected="names with commas between, such as w8a8,w4a8",
            found=repr(text),
            remedy="name some, or leave the option out for the target's defaults",
        )
    for name in names:
        Candidate.parse(name)
    return names


def read_constraints(texts: Sequence[str] | None) -> dict[str, Sequence[str]]:
    """Return the constraints of ``SITE=CANDIDATE[,CANDIDATE…]``, each once."""
    constraints: dict[str, Sequence[str]] = {}
    for text in texts or ():
        # From the right: a pattern after re: may hold an equals sign, a candidate cannot.
        site, _, names = text.rpartition("=")
        if not site or not names or site in constraints:
            raise PlanError(
                "this constraint stands twice" if site in constraints else "not a constraint",
                where="--constraint",
                expected="SITE=CANDIDATE[,CANDIDATE…], each site once",
                found=repr(text),
                remedy="write for instance --constraint conv1=w8a8 or 're:.*fc=w8a8,w4a8'",
            )
        constraints[site] = read_candidates(names) or []
    return constraints
