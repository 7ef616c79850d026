"""The composition of the stages: plan, compile, assign."""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.allocate import Allocation, constrained, solve_allocation
from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import as_inputs, capture
from mpq_compile.cost.fingerprint import device_fingerprint, kernel_hash, toolchain_hash
from mpq_compile.cost.latency import anchored, scaled
from mpq_compile.cost.profile import Profile, load_profile
from mpq_compile.cost.store import Store
from mpq_compile.cost.table import analytic_table, measured_table
from mpq_compile.deploy import complete_assignment, write_artifact
from mpq_compile.errors import InfeasibleBudgetError, MpqError, PlanError
from mpq_compile.inverse import Drop, cheapest_within_drop
from mpq_compile.kernels.tier import Tier, detect_tier
from mpq_compile.passes.formats import kinds
from mpq_compile.passes.materialize import Materialized, materialize
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.registry import METRICS, SOLVERS
from mpq_compile.runtime.artifact import write_verification
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.runtime.threads import thread_count
from mpq_compile.runtime.verify import judge, measure_artifact
from mpq_compile.solve.problem import Solution
from mpq_compile.types import (
    PLAN_VERSION,
    Budget,
    Candidate,
    CostTable,
    Plan,
    Predicted,
    SensitivityTable,
    Verification,
)

log = logging.getLogger(__name__)

MAX_ROUNDS = 5
Evaluate = Callable[[Callable[..., Any]], float]


@dataclass
class Session:
    """One model on one target: stages run when they are first needed, and only once.

    Args:
        model, example_inputs, calibration: As given by the user.
        target: Name or path of a hardware profile.
        candidates: Candidate names, or None for the profile's defaults.
        constraints: Site → candidates.
        metric, solver: Names in the registries.
        observer: How activation ranges are chosen: mse, minmax, percentile or entropy.
        allow_float: Run operators without integer rule in float instead of refusing them.
        seed: Recorded in the plan; every stage is deterministic.
    """

    model: Any
    example_inputs: Any
    calibration: Any
    target: str = "local"
    candidates: Sequence[str] | None = None
    constraints: Mapping[str, str | Sequence[str]] | None = None
    metric: str = "sqnr"
    solver: str = "exact"
    observer: str = "mse"
    allow_float: bool = False
    seed: int = 0
    factor: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        # Names are checked before anything that takes time.
        METRICS.load(self.metric)
        SOLVERS.load(self.solver)
        self.profile: Profile = load_profile(self.target)

    @cached_property
    def network(self) -> Network:
        """The prepared network."""
        network = prepare(capture(self.model, self.example_inputs))
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
    def batches(self) -> tuple[Batch, ...]:
        """The calibration data, checked."""
        return read_batches(self.calibration, self.network)

    @cached_property
    def ranges(self) -> Calibration:
        """Observed ranges."""
        return calibrate(self.network, self.batches, self.observer)

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """Candidates of each site."""
        offered = {
            site.id: self.profile.candidates_for(site, self.candidates)
            for site in self.network.sites
        }
        return constrained(self.network.sites, offered, self.constraints)

    @cached_property
    def sensitivity(self) -> SensitivityTable:
        """Loss of each (site, candidate)."""
        metric = METRICS.load(self.metric)()
        return metric(self.network, self.ranges, self.batches, self.choices)

    @property
    def analytic(self) -> bool:
        """True where the target is known by its equations only."""
        return self.profile.kind == "analytic"

    @cached_property
    def tier(self) -> Tier:
        """Tier of the kernels on this machine."""
        return detect_tier()

    @cached_property
    def costs(self) -> CostTable:
        """Costs of each (site, candidate) on the target."""
        if self.analytic:
            return analytic_table(self.network, self.choices, self.profile)
        with Store() as store:
            alone = measured_table(self.network, self.choices, store, self.tier)
            # Not at the top: measuring imports TVM, which reads its thread count then.
            from mpq_compile.anchors import network_anchors

            anchors = network_anchors(self, alone, store)
        return anchored(alone, anchors)

    def allocation(self) -> Allocation:
        """What a solver needs, latencies scaled by what verification saw."""
        costs = self.costs if self.factor == 1.0 else scaled(self.costs, self.factor)
        return Allocation(
            sites=self.network.sites,
            choices=self.choices,
            sensitivity=self.sensitivity,
            costs=costs,
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
        allocation = self.allocation()
        usage = allocation.usage(assignment)
        weights = sum(site.weight_count for site in self.network.sites)
        predicted = Predicted(
            latency_ms=usage["latency_us"] / 1e3,
            size_bytes=round(usage["size_bytes"]),
            bops=round(usage["bops"]),
            avg_bits=usage["weight_bits"] / weights,
            peak_activation_bytes=round(
                max(allocation.costs.costs[s][n]["peak_bytes"] for s, n in assignment.items())
            ),
            energy_mj=usage.get("energy_mj"),
        )
        return Plan(
            version=PLAN_VERSION,
            assignment=dict(assignment),
            loss=allocation.loss(assignment),
            predicted=predicted,
            budget=budget.given(),
            target=self.target,
            metric=self.metric,
            solver=self.solver if solution else "given",
            certificate=_certificate(solution),
            table=self.rows(assignment, allocation),
            constraints=dict(self.constraints or {}),
            notes=[*notes, *_remarks(assignment, allocation)],
            seed=self.seed,
            provenance=self.provenance(),
        )

    def bare_plan(self, assignment: Mapping[str, str]) -> Plan:
        """Return a plan without sensitivity and measured costs, for ``assign``."""
        weights = sum(site.weight_count for site in self.network.sites)
        bits = sum(
            s.weight_count * Candidate.parse(assignment[s.id]).weight_bits
            for s in self.network.sites
        )
        from mpq_compile.cost.table import counted_costs

        entries = [
            counted_costs(self.network, site, Candidate.parse(assignment[site.id]))
            for site in self.network.sites
        ]
        predicted = Predicted(
            latency_ms=None,
            size_bytes=round(sum(entry["size_bytes"] for entry in entries)),
            bops=round(sum(entry["bops"] for entry in entries)),
            avg_bits=bits / weights,
            peak_activation_bytes=round(max(entry["peak_bytes"] for entry in entries)),
        )
        return Plan(
            version=PLAN_VERSION,
            assignment=dict(assignment),
            loss=float("nan"),
            predicted=predicted,
            budget={},
            target=self.target,
            metric="none",
            solver="given",
            certificate={},
            table=[],
            constraints={},
            notes=["assigned by hand: no sensitivity or latency was measured"],
            seed=self.seed,
            provenance=self.provenance(),
        )

    def rows(self, assignment: Mapping[str, str], allocation: Allocation) -> list[dict[str, Any]]:
        """Return the site × candidate table that ``mpq explain`` prints."""
        return [
            {
                "site": site.id,
                "candidate": name,
                "loss": self.sensitivity.loss[site.id][name],
                "latency_us": allocation.costs.costs[site.id][name]["latency_us"],
                "size_bytes": allocation.costs.costs[site.id][name]["size_bytes"],
                "chosen": assignment[site.id] == name,
            }
            for site in self.network.sites
            for name in self.choices[site.id]
        ]

    def provenance(self) -> dict[str, str]:
        """Return versions and hashes that the plan depends on."""
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "toolchain": toolchain_hash(),
            "kernels": kernel_hash(),
            "device": device_fingerprint(),
            "network": self.digest(),
        }

    def solve(self, budget: Budget) -> Plan:
        """Return the plan of least loss within ``budget``."""
        solution = solve_allocation(self.allocation(), budget, self.solver)
        return self.plan_for(self.allocation().expand(solution), budget, solution)

    # Networks

    def build(
        self, plan: Plan, owner: tempfile.TemporaryDirectory[str] | None = None
    ) -> CompiledNetwork:
        """Write the artifact of ``plan`` to a temporary folder and load it."""
        owner = owner or tempfile.TemporaryDirectory(prefix="mpq-")
        folder = Path(owner.name) / "artifact"
        materialized = write_artifact(
            self.network, self.ranges, plan, folder, self.tier, self.allow_float
        )
        return CompiledNetwork(folder, reference_of(materialized), owner)

    def reference(self, assignment: Mapping[str, str]) -> nn.Module:
        """Return the oracle of an assignment, without building anything."""
        return reference_of(materialize(self.network, self.ranges, assignment, self.allow_float))


class Reference(nn.Module):
    """The materialized graph, called like the model; ``graph_module`` is the GraphModule."""

    def __init__(self, materialized: Materialized) -> None:
        super().__init__()
        self.graph_module = materialized.module
        self._spec = materialized.network.captured.out_spec

    def forward(self, *inputs: Tensor) -> Any:
        """Run the oracle; outputs have the structure that the model returns."""
        with torch.no_grad():
            flat = self.graph_module(*pytree.tree_leaves(inputs))
        return pytree.tree_unflatten(list(flat), self._spec)


def reference_of(materialized: Materialized) -> Reference:
    """Wrap a materialized graph so that it returns what the model returns."""
    return Reference(materialized)


def _certificate(solution: Solution | None) -> dict[str, Any]:
    if solution is None:
        return {}
    return {
        "status": solution.status,
        "bound": solution.bound,
        "gap": solution.gap,
        "wall_s": solution.wall_s,
        **solution.certificate,
    }


def _remarks(assignment: Mapping[str, str], allocation: Allocation) -> list[str]:
    names = set(assignment.values())
    free = any(len(names) > 1 for names in allocation.choices.values())
    if len(names) == 1 and free:
        return [f"one uniform candidate dominates within this budget: all {names.pop()}"]
    return []


def _budget(budget: Budget | Mapping[str, float] | None) -> Budget:
    if budget is None:
        return Budget()
    if isinstance(budget, Budget):
        return budget
    try:
        return Budget(**budget)
    except TypeError as error:
        raise PlanError(
            "unknown budget",
            expected=", ".join(Budget.__dataclass_fields__),
            found=", ".join(budget),
            remedy="use the names of mpq.Budget",
        ) from error


def _drop(session: Session, evaluate: Evaluate | None, limit: float) -> Drop:
    return Drop(limit=limit, evaluate=evaluate, model=session.model, batches=session.batches)


def _plan(
    session: Session, budget: Budget, minimize: str | None, evaluate: Evaluate | None
) -> Plan:
    if budget.max_drop is None and minimize is None:
        return session.solve(budget)
    if budget.max_drop is None:
        raise PlanError(
            "minimize needs a bound on the loss",
            expected="Budget(max_drop=...)",
            found=f"minimize={minimize!r} alone",
            remedy="add max_drop to the budget, or leave minimize out",
        )
    drop = _drop(session, evaluate, budget.max_drop)
    found = cheapest_within_drop(session, budget, minimize or "latency", drop)
    return session.plan_for(found.assignment, budget, found.solution, found.notes)


def plan(
    model: Any,
    example_inputs: Any,
    calibration: Iterable[Any],
    target: str = "local",
    budget: Budget | Mapping[str, float] | None = None,
    metric: str = "sqnr",
    solver: str = "exact",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    minimize: str | None = None,
    evaluate: Evaluate | None = None,
    allow_float: bool = False,
    observer: str = "mse",
) -> Plan:
    """Choose the bits of every site: least loss within ``budget`` on ``target``.

    Args:
        model: ``nn.Module``, ``ExportedProgram`` or path of a ``.pt2`` file.
        example_inputs: Tensor or tuple of tensors of the deployed shapes.
        calibration: Iterable of input batches, or of (inputs, labels).
        target: Name or path of a hardware profile; "local" is this machine.
        budget: Bounds on the result; none gives the most accurate candidate everywhere.
        metric: Sensitivity metric by name.
        solver: Solver by name.
        candidates: Names to choose from; None for the profile's defaults.
        constraints: ``{"conv1": "w8a8", "re:.*fc": ["w8a8", "w4a8"]}`` pins sites.
        seed: Recorded; every stage is deterministic.
        minimize: With ``Budget(max_drop=…)``: "latency", "size", "bops" or "energy".
        evaluate: ``evaluate(net) -> float``, higher is better; measures ``max_drop``. Without it
            the drop is the share (%) of calibration samples whose top-1 differs from float.
        allow_float: Run operators without a rule in float on TVM; the audit shows them.
        observer: Range estimator of activations: mse, minmax, percentile, entropy.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message says what is attainable.
        CalibrationError, CaptureError, UnsupportedOpError, ProfileError, PlanError: Bad input.
    """
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric,
        solver,
        observer,
        allow_float,
        seed,
    )
    return _plan(session, _budget(budget), minimize, evaluate)


def compile(  # noqa: A001 - the public name
    model: Any,
    example_inputs: Any,
    calibration: Iterable[Any],
    target: str = "local",
    budget: Budget | Mapping[str, float] | None = None,
    plan: Plan | None = None,
    metric: str = "sqnr",
    solver: str = "exact",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    minimize: str | None = None,
    evaluate: Evaluate | None = None,
    allow_float: bool = False,
    observer: str = "mse",
    verify: bool = True,
) -> CompiledNetwork:
    """Plan, build and measure until the network keeps its budget on the device.

    Arguments are those of :func:`plan`, and:

    Args:
        plan: Build this plan instead of making one; its budget is checked, not solved for.
        verify: Measure latency in fresh processes (always done where the budget bounds it).

    Returns:
        The network; ``net.verification`` holds what was measured.

    Raises:
        InfeasibleBudgetError: No assignment was measured within the budget.
    """
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric,
        solver,
        observer,
        allow_float,
        seed,
    )
    if plan is not None:
        return _build_given(session, plan, verify)
    return compile_session(session, _budget(budget), minimize, evaluate, verify)


def _build_given(session: Session, plan: Plan, verify: bool) -> CompiledNetwork:
    assignment = complete_assignment(session.network, plan.assignment)
    network = session.build(replace(plan, assignment=assignment))
    if verify and not session.analytic:
        _verify(network, plan.budget, 1)
    return network


def compile_session(
    session: Session,
    budget: Budget,
    minimize: str | None = None,
    evaluate: Evaluate | None = None,
    verify: bool = True,
) -> CompiledNetwork:
    """The loop: solve, build, measure; where the budget is missed, correct the model and repeat."""
    timed = not session.analytic and (verify or _bounds_latency(budget))
    least_seen = float("inf")
    for number in range(1, MAX_ROUNDS + 1):
        try:
            plan = _plan(session, budget, minimize, evaluate)
        except InfeasibleBudgetError as error:
            raise _attainable(error, least_seen) from error
        network = session.build(plan)
        if not timed:
            return network
        verification = _verify(network, budget.given(), number)
        if verification.status != "rejected":
            return network
        least_seen = min(least_seen, verification.latency_ms_upper95)
        _correct(session, plan, verification, budget)
    raise InfeasibleBudgetError(
        f"no assignment was measured within the budget in {MAX_ROUNDS} rounds",
        expected=", ".join(f"{k}={v:g}" for k, v in budget.given().items()),
        found=f"{least_seen:.4g} ms at the least",
        remedy="raise the latency budget, or free the machine of other work",
    )


def _bounds_latency(budget: Budget) -> bool:
    return budget.latency_ms is not None or budget.latency_p95_ms is not None


def _verify(network: CompiledNetwork, budget: Mapping[str, float], number: int) -> Verification:
    verification = judge(measure_artifact(network.folder), budget, number)
    network.verification = verification
    write_verification(network.folder, verification)
    return verification


def _correct(session: Session, plan: Plan, seen: Verification, budget: Budget) -> None:
    """Scale predicted latencies so that what was just measured would have been refused."""
    assert plan.predicted.latency_ms is not None
    ratio = seen.latency_ms_upper95 / plan.predicted.latency_ms
    if budget.latency_p95_ms is not None:
        ratio = max(ratio, seen.latency_p95_ms / (1.15 * plan.predicted.latency_ms))
    # At least one percent: a ratio of one would give the same plan again.
    session.factor *= max(ratio, 1.01)
    log.info("latency model corrected by %.3f", ratio)


def _attainable(error: InfeasibleBudgetError, least_seen: float) -> MpqError:
    if least_seen == float("inf"):
        return error
    return InfeasibleBudgetError(
        error.message,
        expected=error.expected,
        found=f"{error.found}; the fastest network built measured {least_seen:.4g} ms",
        remedy=error.remedy,
    )


def assign(
    model: Any,
    example_inputs: Any,
    calibration: Iterable[Any],
    assignment: str | Mapping[str, str],
    target: str = "local",
    allow_float: bool = False,
    observer: str = "mse",
    verify: bool = False,
) -> CompiledNetwork:
    """Build a given assignment: one candidate for all sites, or a mapping from site id.

    Raises:
        PlanError: A name is unknown, or the target does not support it at a site.
    """
    session = Session(
        model, example_inputs, calibration, target, allow_float=allow_float, observer=observer
    )
    return assign_session(session, assignment, verify)


def assign_session(
    session: Session, assignment: str | Mapping[str, str], verify: bool = False
) -> CompiledNetwork:
    """Build an assignment within a session."""
    full = complete_assignment(session.network, assignment)
    for site in session.network.sites:
        session.profile.candidates_for(site, [full[site.id]])
    network = session.build(session.bare_plan(full))
    if verify:
        _verify(network, {}, 1)
    return network


def model_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Return the positional arguments of a call."""
    return as_inputs(example_inputs)


def threads() -> int:
    """Return the thread count of the kernels."""
    return thread_count()
