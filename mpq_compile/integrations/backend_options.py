"""The options of ``torch.compile(model, backend="mpq", options={...})``, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mpq_compile.closed_loop import recipe_for
from mpq_compile.cost.targets import TargetLike
from mpq_compile.errors import PlanError, nearest
from mpq_compile.recipe import Recipe
from mpq_compile.search.policy import Policy
from mpq_compile.session import Session
from mpq_compile.types import Budget, Plan

_RECIPE = frozenset(f.name for f in fields(Recipe))


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What the backend is asked for; names are those of ``mpq.plan`` and ``mpq.compile``.

    Args:
        plan: Bits and recipe that were chosen before; takes the place of ``budget``.
        assignment: Bits by hand: a candidate for all sites, or a candidate for each site id.
        calibration: Batches of the model's inputs. None where ``mpq.calibrating`` shows them.
        budget: Bounds on all parts of the model together.
        target, metric, solver, candidates, constraints, allow_float, tuned, seed, minimize,
            measure_s: As for ``mpq.plan``.
        verify: Measure latency in fresh processes (always done where the budget bounds it).
        max_variants: Networks of a part, at most: one for each input shape beside the batch.
        recipe: How the model is quantized beyond its bits.
    """

    plan: Plan | None = None
    assignment: str | Mapping[str, str] | Policy | None = None
    calibration: Any = None
    budget: Budget = field(default_factory=Budget)
    target: TargetLike = "local"
    metric: str = "sqnr"
    solver: str = "exact"
    candidates: Sequence[str] | None = None
    constraints: Mapping[str, str | Sequence[str]] | None = None
    minimize: str | None = None
    measure_s: float | None = None
    allow_float: bool = False
    tuned: bool = True
    verify: bool = True
    seed: int = 0
    max_variants: int = 8
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> BackendOptions:
        """Check the user's dictionary.

        Raises:
            PlanError: An option is unknown, or two of them exclude each other.
            MpqError: The value of an option is wrong.
        """
        known = ({f.name for f in fields(cls)} | _RECIPE) - {"recipe"}
        for name in options:
            if name not in known:
                raise PlanError(
                    f"unknown option {name!r} of the backend mpq",
                    where="torch.compile(…, options=…)",
                    expected="an option of the backend",
                    found=repr(name),
                    remedy=nearest(name, known),
                )
        _check_exclusive(options)
        given = {name: value for name, value in options.items() if name not in _RECIPE}
        recipe = {name: value for name, value in options.items() if name in _RECIPE}
        given["budget"] = Budget.of(options.get("budget"))
        given["plan"] = plan = _plan(options.get("plan"))
        if plan is None:
            given["recipe"] = recipe_for(Recipe(**recipe), given["budget"], None)
        else:
            given["recipe"] = Recipe.of_plan(plan.provenance)
        return cls(**given)

    def session(self, captured: Any, calibration: Sequence[Any], **changes: Any) -> Session:
        """Return the session of one part: its graph, and the batches of inputs that it saw."""
        arguments: dict[str, Any] = {
            "target": self.target,
            "candidates": self.candidates,
            "constraints": self.constraints,
            "metric": self.metric,
            "solver": self.solver,
            "recipe": self.recipe,
            "allow_float": self.allow_float,
            "seed": self.seed,
            "tuned": self.tuned,
            "measure_s": self.measure_s,
        }
        return Session(captured, captured.example_inputs, calibration, **{**arguments, **changes})


def _check_exclusive(options: Mapping[str, Any]) -> None:
    chosen = [name for name in ("plan", "assignment", "budget") if options.get(name) is not None]
    recipe = sorted(_RECIPE & set(options)) if "plan" in chosen else []
    if len(chosen) > 1 or recipe:
        raise PlanError(
            "options of the backend exclude each other",
            where="torch.compile(…, options=…)",
            expected="one of plan, assignment and budget; a plan brings its recipe with it",
            found=", ".join([*chosen, *recipe]),
            remedy="leave the others out",
        )


def _plan(plan: Plan | str | Path | None) -> Plan | None:
    if plan is None or isinstance(plan, Plan):
        return plan
    try:
        return Plan.from_json(json.loads(Path(plan).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PlanError(
            "cannot read the plan",
            where=str(plan),
            expected="a plan file that `mpq plan -o` wrote, or a Plan",
            found=f"{type(error).__name__}: {error}",
            remedy="make the plan with mpq.plan or `mpq plan`",
        ) from error
