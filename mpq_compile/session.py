"""One model on one target: every stage, run when it is first needed and kept."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import fx

from mpq_compile.allocate import Allocation, constrained, solve_allocation
from mpq_compile.building import build_plan, reference_of, structured
from mpq_compile.calibrate import Batch, calibrate, hold_out
from mpq_compile.capture import capture
from mpq_compile.cost.profile import Profile
from mpq_compile.cost.store import check_default_folder
from mpq_compile.cost.targets import Target, TargetLike, resolve_target
from mpq_compile.cost.tune import tuning_budget_s
from mpq_compile.costing import Costing
from mpq_compile.data.batches import Data, read_data
from mpq_compile.errors import PlanError
from mpq_compile.kernels.tier import Tier
from mpq_compile.passes.balance import balanced
from mpq_compile.passes.fixed_qparams import fixed_candidates, with_fixed
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.materialize import materialize
from mpq_compile.passes.materialized import Materialized
from mpq_compile.passes.network import Network, prepare
from mpq_compile.plan_records import plan_of, provenance_of, unmeasured_plan
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import AUTO
from mpq_compile.quant.range_stability import JUDGED_BITS, range_note
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.correction import fit_channels
from mpq_compile.reconstruct.rounding import with_rounding
from mpq_compile.registry import METRICS, SOLVERS
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.range_trials import choose_observers
from mpq_compile.shared_tasks import fitted_sites, measured_sensitivity, perform
from mpq_compile.solve.problem import Solution
from mpq_compile.types import (
    Budget,
    Candidate,
    CostTable,
    Plan,
    SensitivityTable,
)
from mpq_compile.workpool import current_pool

# Solves until the prediction of a plan is within the budget too.
_SOLVES = 4
# Assignments whose searched roundings are remembered.
_KEPT = 8


@dataclass
class Session:
    """One model on one target: stages run when they are first needed, and only once.

    Args:
        model, example_inputs, calibration: As given by the user.
        target: Name or path of a hardware profile, or the address of a remote device.
        candidates: Candidate names, or None for the profile's defaults.
        constraints: Site → candidates.
        metric, solver: Names in the registries.
        recipe: How it is quantized beyond the bits.
        allow_float: Run operators without integer rule in float instead of refusing them.
        seed: Recorded in the plan: which samples are drawn; every stage is deterministic.
        tuned: Search schedules and use those that were found; False leaves all to the cost model.
        measure_s: Seconds to spend on kernels that were never measured; what is left is estimated
            from those that were. None measures all.
    """

    model: Any
    example_inputs: Any
    calibration: Any
    target: TargetLike = "local"
    candidates: Sequence[str] | None = None
    constraints: Mapping[str, str | Sequence[str]] | None = None
    metric: str = "sqnr"
    solver: str = "exact"
    recipe: Recipe = field(default_factory=Recipe)
    allow_float: bool = False
    seed: int = 0
    tuned: bool = True
    measure_s: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str):
            self.candidates = [self.candidates]
        # Names are checked before anything that takes time.
        METRICS.load(self.metric)
        SOLVERS.load(self.solver)
        self.tuning_s = tuning_budget_s() if self.tuned else 0.0
        self._found: Target = resolve_target(self.target)
        self.profile: Profile = self._found.profile
        self._range_notes: dict[str, str] = {}
        # A process that only helps another stays here.
        current_pool().opened(lambda: partial(perform, network=self.network, batches=self.batches))

    def check_database(self) -> None:
        """Raise ``ProfileError`` where costs are to be measured and have no place to be kept."""
        if self.profile.kind != "analytic":
            check_default_folder()

    @cached_property
    def network(self) -> Network:
        """The prepared network, its channels scaled as the recipe says."""
        prepared, recipe = self._prepared, self.recipe
        return balanced(
            prepared,
            lambda: [batch.inputs for batch in self.batches],
            recipe.equalize,
            recipe.migration,
            recipe.first_observer,
        )

    @cached_property
    def _prepared(self) -> Network:
        network = prepare(capture(self.model, self.example_inputs))
        if network.captured.fixed:
            self.recipe = self.recipe.as_given()
        kinds(network, self.allow_float)
        if not network.sites:
            raise PlanError(
                "the model has nothing to quantize",
                expected="at least one convolution or linear layer",
                found="none",
                remedy="check that weights are parameters of the model",
            )
        return network

    @cached_property
    def data(self) -> Data:
        """The calibration data as it was read."""
        return read_data(self.calibration, self._prepared, self.recipe.samples, self.seed)

    @cached_property
    def _data(self) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
        return hold_out(self.data.batches, self.recipe.held_out or 0.0, self._prepared)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The calibration data, checked, without what is held out."""
        return self._data[0]

    @property
    def held_out(self) -> tuple[Batch, ...]:
        """Data to judge assignments by: all of it where none is held out."""
        return self._data[1]

    @cached_property
    def ranges(self) -> Calibration:
        """Observed ranges of tensors, and the fits that were asked for so far."""
        found = calibrate(self.network, self.batches, self.recipe.first_observer)
        return with_fixed(self.network, found)

    def range_note(self) -> str:
        """Say from how many samples on ranges are stable.

        It takes a while, and every plan says it: each observer that judges is asked once.
        """
        observer = self.ranges.observer_at(JUDGED_BITS)
        if observer not in self._range_notes:
            self._range_notes[observer] = range_note(self.ranges)
        return self._range_notes[observer]

    def calibration_for(self, choices: Mapping[str, str | Sequence[str]]) -> Calibration:
        """Return ranges, with fits for these candidates of sites at least."""
        if self.recipe.observer == AUTO:
            choose_observers(self.network, self.ranges, self.batches, choices)
        fit_channels(self.network, self.ranges, self.batches, choices, self.recipe.correction)
        return self.ranges

    def fitted_for(self, choices: Mapping[str, str | Sequence[str]]) -> Calibration:
        """Return ranges, with weights that were fitted for these candidates of sites at least."""
        for key, fit in self.calibration_for(choices).fits.items():
            self._fitted.fits.setdefault(key, fit)
        fitted_sites(self.network, self._fitted, self.batches, choices)
        return self._fitted

    @cached_property
    def _fitted(self) -> Calibration:
        return replace(self.ranges, weights={}, fits={})

    def seen_for(
        self, choices: Mapping[str, str | Sequence[str]], weights: str | None = None
    ) -> Calibration:
        """Return what sensitivities of these candidates are measured on.

        Args:
            choices: A candidate, or several, by site.
            weights: nearest or rounded; None for the recipe's.
        """
        rounded = (weights or self.recipe.sensitivity_on) == "rounded"
        return self.fitted_for(choices) if rounded else self.calibration_for(choices)

    def rounded_for(self, assignment: Mapping[str, str]) -> Calibration:
        """Return ranges and weights of the network that is built for an assignment."""
        key = tuple(assignment[site.id] for site in self.network.sites)
        if key not in self._rounded:
            while len(self._rounded) >= _KEPT:
                self._rounded.pop(next(iter(self._rounded)))
            # What was fitted to sites alone is there for any assignment.
            alone = self.recipe.rounding == "per_site"
            calibration = (self.fitted_for if alone else self.calibration_for)(assignment)
            self._rounded[key] = with_rounding(
                self.network, calibration, self.batches, assignment, self.recipe.rounding
            )
        return self._rounded[key]

    def keep(self, assignment: Mapping[str, str], calibration: Calibration) -> None:
        """Build an assignment with these ranges and weights from now on."""
        self._rounded[tuple(assignment[site.id] for site in self.network.sites)] = calibration

    @cached_property
    def _rounded(self) -> dict[tuple[str, ...], Calibration]:
        return {}

    @cached_property
    def graph(self) -> QuantizedGraph:
        """The float graph with quantizers that can be switched to any of the choices."""
        return QuantizedGraph(self.network, self.seen_for(self.choices))

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """Candidates of each site."""
        offered = {
            site.id: self.profile.candidates_for(site, self.candidates)
            for site in self.network.sites
        }
        for site, name in fixed_candidates(self.network).items():
            if name in offered[site] or (self.candidates is None and self._supports(site, name)):
                offered[site] = [name]
        return constrained(self.network.sites, offered, self.constraints)

    def _supports(self, site_id: str, name: str) -> bool:
        site = next(site for site in self.network.sites if site.id == site_id)
        return self.profile.supports(site.op, site.depthwise, Candidate.parse(name), site)

    def pin(self, assignment: Mapping[str, str]) -> None:
        """Leave each site one candidate; before anything is chosen from."""
        self.candidates = list(dict.fromkeys(assignment.values()))
        self.constraints = dict(assignment)

    @property
    def sensitivity(self) -> SensitivityTable:
        """Loss of each (site, candidate)."""
        return self.sensitivity_by(self.metric)

    def sensitivity_by(self, metric: str, weights: str | None = None) -> SensitivityTable:
        """Return the table of any metric on nearest or rounded weights; each is computed once."""
        key = metric, weights or self.recipe.sensitivity_on
        if key not in self._tables:
            calibration = self.seen_for(self.choices, weights)
            self._tables[key] = measured_sensitivity(
                metric, self.network, calibration, self.batches, self.choices
            )
        return self._tables[key]

    @cached_property
    def _tables(self) -> dict[tuple[str, str], SensitivityTable]:
        return {}

    @property
    def target_name(self) -> str:
        """Name of the target, as plans record it."""
        return self._found.name

    @property
    def analytic(self) -> bool:
        """True where no network runs on the target: it is known by equations, or by a class."""
        return not self.profile.runs_networks

    @property
    def device(self) -> Device:
        """Where kernels and networks run; for an analytic target, this machine."""
        return self._found.device

    @property
    def tier(self) -> Tier:
        """Tier of the kernels."""
        return self.device.tier

    @cached_property
    def costing(self) -> Costing:
        """What candidates cost on the target."""
        return Costing(self)

    @property
    def costs(self) -> CostTable:
        """Costs of each (site, candidate) on the target, after all that was measured."""
        return self.costing.table

    def allocation(self) -> Allocation:
        """What a solver needs."""
        return Allocation(
            sites=self.network.sites,
            choices=self.choices,
            sensitivity=self.sensitivity,
            costs=self.costs,
            p95_ratio=self.costing.p95_ratio,
        )

    def digest(self) -> str:
        """Return a hash of the network's structure and shapes."""
        shapes = sorted((name, str(entry)) for name, entry in self.network.shapes.items())
        text = f"{self.network.module.graph}{shapes}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # Plans

    def plan_for(
        self,
        assignment: Mapping[str, str],
        budget: Budget,
        solution: Solution | None = None,
        notes: Sequence[str] = (),
    ) -> Plan:
        """Return the plan of an assignment, with what the tables predict for it."""
        return plan_of(self, assignment, budget, solution, notes)

    def bare_plan(self, assignment: Mapping[str, str]) -> Plan:
        """Return a plan without sensitivity and measured costs, for ``assign``."""
        return unmeasured_plan(self, assignment)

    def provenance(self) -> dict[str, str]:
        """Return versions and hashes that the plan depends on."""
        return provenance_of(self)

    def solve(self, budget: Budget) -> Plan:
        """Return the plan of least loss within ``budget``.

        A solver sees latency as a sum of sites and pairs, which is a little less than the
        prediction where more than two sites share an operator. Where the prediction is above the
        budget for that, a lower latency is solved for.
        """
        allocation, aim = self.allocation(), budget
        for _ in range(_SOLVES):
            solution = solve_allocation(allocation, aim, self.solver)
            plan = self.plan_for(allocation.expand(solution), budget, solution)
            excess = self.excess(plan, budget)
            if excess <= 1.0:
                break
            aim = aim.with_latency_scaled(1 / excess)
        return plan

    def excess(self, plan: Plan, budget: Budget) -> float:
        """Return the predicted latency over the budget's; 0 where none is bounded."""
        limits = [budget.latency_ms]
        if budget.latency_p95_ms is not None:
            limits.append(budget.latency_p95_ms / self.costing.p95_ratio)
        bounded = [limit for limit in limits if limit is not None]
        if not bounded or self.analytic or plan.predicted.latency_ms is None:
            return 0.0
        # What rounding does to a sum is no excess.
        return plan.predicted.latency_ms / min(bounded) / (1 + 1e-9)

    # Networks

    def build(
        self, plan: Plan, owner: tempfile.TemporaryDirectory[str] | None = None
    ) -> CompiledNetwork:
        """Write the artifact of ``plan`` to a temporary folder and load it."""
        return build_plan(self, plan, owner)

    def float_graph(self) -> fx.GraphModule:
        """Return the float network, called like the model."""
        return structured(self.network.module, self.network.captured.out_spec)

    def reference(self, assignment: Mapping[str, str]) -> fx.GraphModule:
        """Return the oracle of an assignment, without building anything."""
        return reference_of(self.materialized(assignment))

    def materialized(self, assignment: Mapping[str, str]) -> Materialized:
        """Return the graph that is lowered for an assignment, with what its sites were given."""
        calibration = self.rounded_for(assignment)
        return materialize(self.network, calibration, assignment, self.allow_float)
