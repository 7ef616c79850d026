"""The composition of the stages: plan, compile, assign."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mpq_compile.anchors import LEAST_ERROR
from mpq_compile.auto import AUTO, plan_auto
from mpq_compile.cost.latency import Z95, Observation
from mpq_compile.cost.targets import TargetLike
from mpq_compile.deploy import complete_assignment
from mpq_compile.errors import InfeasibleBudgetError, MpqError, PlanError
from mpq_compile.inverse import EVALUATIONS, Goal, cheapest
from mpq_compile.judging import Evaluate, Judge
from mpq_compile.runtime.artifact import write_verification
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.runtime.verify import verify_artifact
from mpq_compile.session import Session
from mpq_compile.types import Budget, Plan, Verification

log = logging.getLogger(__name__)

MAX_ROUNDS = 5
# A plan is solved for a latency this many standard deviations of its prediction below the budget.
AIM = 1.0
# An accepted network that leaves more of its latency budget unused may be improved.
SLACK = 0.03


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
            found=", ".join(budget) if isinstance(budget, Mapping) else repr(budget),
            remedy="use the names of mpq.Budget",
        ) from error


def _goal(
    session: Session,
    budget: Budget,
    minimize: str | None,
    evaluate: Evaluate | str | None,
    evaluations: int,
) -> Goal | None:
    """Return what is minimised; None where that is the loss."""
    if budget.max_drop is None and budget.max_loss is None:
        if minimize is None:
            return None
        raise PlanError(
            "minimize needs a bound on the loss",
            expected="Budget(max_drop=...), or Budget(max_loss=...) in the metric's unit",
            found=f"minimize={minimize!r} alone",
            remedy="add max_drop or max_loss to the budget, or leave minimize out",
        )
    judge = None
    if budget.max_drop is not None:
        judge = Judge(session, evaluate or "top1", session.batches)
    return Goal(objective=minimize or "latency", judge=judge, evaluations=evaluations)


def _plan(session: Session, budget: Budget, goal: Goal | None) -> Plan:
    if goal is None:
        return plan_auto(session, budget) if session.solver == AUTO else session.solve(budget)
    found = cheapest(session, budget, goal)
    return session.plan_for(found.assignment, budget, found.solution, found.notes)


def plan(
    model: Any,
    example_inputs: Any,
    calibration: Iterable[Any],
    target: TargetLike = "local",
    budget: Budget | Mapping[str, float] | None = None,
    metric: str = "sqnr",
    solver: str = "exact",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    minimize: str | None = None,
    evaluate: Evaluate | str | None = None,
    evaluations: int = EVALUATIONS,
    allow_float: bool = False,
    observer: str = "mse",
    correction: str = "affine",
    tuned: bool = True,
    measure_s: float | None = None,
) -> Plan:
    """Choose the bits of every site: least loss within ``budget`` on ``target``.

    Args:
        model: ``nn.Module``, ``ExportedProgram`` or path of a ``.pt2`` file.
        example_inputs: Tensor or tuple of tensors of the deployed shapes.
        calibration: Iterable of input batches, or of (inputs, labels).
        target: Name or path of a hardware profile ("local" is this machine), or the address of a
            remote device: ``rpc://host:port/KEY``, ``{"rpc": {"tracker": "host:port", "key": …}}``.
        budget: Bounds on the result; none gives the most accurate candidate everywhere.
        metric: Sensitivity metric by name.
        solver: Solver by name.
        candidates: Names to choose from; None for the profile's defaults.
        constraints: ``{"conv1": "w8a8", "re:.*fc": ["w8a8", "w4a8"]}`` pins sites.
        seed: Recorded; every stage is deterministic.
        minimize: With ``Budget(max_drop=…)`` or ``Budget(max_loss=…)``: "latency", "size", "bops"
            or "energy".
        evaluate: ``evaluate(net) -> float``, higher is better; measures ``max_drop``. Or what to
            measure on the calibration data: "top1" (the default: share (%) of samples whose
            top-1 differs from float), "kl", "noise" or, with labels, "accuracy".
        evaluations: Most assignments that are measured to keep ``max_drop``.
        allow_float: Run operators without a rule in float on TVM; the audit shows them.
        observer: Range estimator of activations: mse, minmax, percentile, entropy.
        correction: What is fitted to each output channel of rounded weights in closed form: its
            gain and shift ("affine"), its shift ("bias", empirical bias correction), or "none".
        tuned: Search schedules of kernels (``MPQ_TUNE`` bounds the time); False leaves them to
            the cost model.
        measure_s: Seconds to spend on what was never measured on the target: tuning, kernels,
            then whole networks, which are begun only while there is time. Kernels that are left
            are estimated from those that were measured, and the plan says so. None measures all.

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
        metric=metric,
        solver=solver,
        observer=observer,
        correction=correction,
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
        measure_s=measure_s,
    )
    bounds = _budget(budget)
    return _plan(session, bounds, _goal(session, bounds, minimize, evaluate, evaluations))


def compile(  # noqa: A001 - the public name
    model: Any,
    example_inputs: Any,
    calibration: Iterable[Any],
    target: TargetLike = "local",
    budget: Budget | Mapping[str, float] | None = None,
    plan: Plan | None = None,
    metric: str = "sqnr",
    solver: str = "exact",
    candidates: Sequence[str] | None = None,
    constraints: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    minimize: str | None = None,
    evaluate: Evaluate | str | None = None,
    evaluations: int = EVALUATIONS,
    allow_float: bool = False,
    observer: str = "mse",
    correction: str = "affine",
    verify: bool = True,
    tuned: bool = True,
    measure_s: float | None = None,
) -> CompiledNetwork:
    """Plan, build and measure until the network keeps its budget on the device.

    Arguments are those of :func:`plan`, and:

    Args:
        plan: Build this plan instead of making one, with the observer and the correction that it
            was made with; its budget is checked, not solved for.
        verify: Measure latency in fresh processes (always done where the budget bounds it).

    Returns:
        The network; ``net.verification`` holds what was measured.

    Raises:
        InfeasibleBudgetError: No assignment was measured within the budget.
    """
    if plan is not None:
        observer = plan.provenance.get("observer", observer)
        correction = plan.provenance.get("correction", correction)
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric=metric,
        solver=solver,
        observer=observer,
        correction=correction,
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
        measure_s=measure_s,
    )
    if plan is not None:
        return _build_given(session, plan, verify)
    return compile_session(session, _budget(budget), minimize, evaluate, verify, evaluations)


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
    evaluate: Evaluate | str | None = None,
    verify: bool = True,
    evaluations: int = EVALUATIONS,
) -> CompiledNetwork:
    """The loop: solve, build, measure; what was measured corrects the model of the next round.

    It goes on where the budget is missed, and also where the network that keeps it leaves much of
    it unused and a better plan is predicted to keep it too: the last one that does is returned.
    """
    goal = _goal(session, budget, minimize, evaluate, evaluations)
    timed = not session.analytic and (verify or _bounds_latency(budget))
    least_seen = float("inf")
    best: CompiledNetwork | None = None
    for number in range(1, MAX_ROUNDS + 1):
        try:
            plan = _aimed_plan(session, budget, goal, timed)
        except InfeasibleBudgetError as error:
            if best is not None:
                return best
            raise _attainable(error, least_seen) from error
        if best is not None and not _is_better(plan, best.plan):
            return best
        network = session.build(plan)
        if not timed:
            return network
        seen = _verify(network, budget.given(), number)
        if seen.status == "accepted" and _slack(seen, budget) > SLACK and goal is None:
            best = network
        elif seen.status != "rejected":
            return network if best is None or seen.status == "accepted" else best
        elif best is not None:
            return best
        least_seen = min(least_seen, seen.latency_ms_upper95)
        if number < MAX_ROUNDS:
            _learn(session, plan, seen, budget)
    if best is not None:
        return best
    raise InfeasibleBudgetError(
        f"no assignment was measured within the budget in {MAX_ROUNDS} rounds",
        expected=", ".join(f"{k}={v:g}" for k, v in budget.given().items()),
        found=f"{least_seen:.4g} ms at the least",
        remedy="raise the latency budget, or free the machine of other work",
    )


def _slack(seen: Verification, budget: Budget) -> float:
    """Return the share of the tightest bound on latency that was not used; 0 without any."""
    used = [
        upper / limit
        for upper, limit in (
            (seen.latency_ms_upper95, budget.latency_ms),
            (seen.latency_p95_ms_upper95, budget.latency_p95_ms),
        )
        if limit is not None
    ]
    return 1 - max(used, default=1.0)


def _is_better(plan: Plan, other: Plan) -> bool:
    """Tell whether a plan loses less than another by more than rounding."""
    assert plan.loss is not None and other.loss is not None
    return plan.loss < other.loss - 1e-6 * abs(other.loss)


def _bounds_latency(budget: Budget) -> bool:
    return budget.latency_ms is not None or budget.latency_p95_ms is not None


def _verify(network: CompiledNetwork, budget: Mapping[str, float], number: int) -> Verification:
    """Measure and judge."""
    verification = verify_artifact(
        network.folder,
        network.device,
        budget,
        rounds=number,
        profile_energy_mj=network.plan.predicted.energy_mj,
    )
    network.verification = verification
    write_verification(network.folder, verification)
    return verification


def _aimed_plan(session: Session, budget: Budget, goal: Goal | None, timed: bool) -> Plan:
    """Return a plan that is likely to be measured within the budget, not just predicted so.

    It is solved for a latency that is lower by the error of the prediction near the budget. Where
    nothing is that fast, the budget itself is tried.
    """
    if timed and _bounds_latency(budget):
        with suppress(InfeasibleBudgetError):
            near = session.solve(budget).assignment
            error = session.costing.prediction_error(near)
            aim = budget.with_latency_scaled(1 / (1 + AIM * error))
            plan = _plan(session, aim, goal)
            return replace(plan, budget=budget.given())
    return _plan(session, budget, goal)


def _learn(session: Session, plan: Plan, seen: Verification, budget: Budget) -> None:
    """Let the latency model know what was measured; the next plan follows from it."""
    half_width = (seen.latency_ms_upper95 - seen.latency_ms_lower95) / (2 * Z95 * seen.latency_ms)
    session.costing.learn(
        Observation(
            assignment=plan.assignment,
            latency_us=1e3 * seen.latency_ms,
            error=max(LEAST_ERROR, half_width),
            run=session.costing.latency.next_run,
        )
    )
    if budget.latency_p95_ms is not None:
        session.costing.p95_ratio = max(1.0, seen.latency_p95_ms_upper95 / seen.latency_ms)
    log.info("measured %.4g ms, predicted %.4g", seen.latency_ms, plan.predicted.latency_ms)


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
    target: TargetLike = "local",
    allow_float: bool = False,
    observer: str = "mse",
    correction: str = "affine",
    verify: bool = False,
    tuned: bool = True,
) -> CompiledNetwork:
    """Build a given assignment: one candidate for all sites, or a mapping from site id.

    Raises:
        PlanError: A name is unknown, or the target does not support it at a site.
    """
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        allow_float=allow_float,
        observer=observer,
        correction=correction,
        tuned=tuned,
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
