"""The loop of a budget: solve, build, measure; what was measured corrects the next plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from mpq_compile.anchors import LEAST_ERROR
from mpq_compile.attempts import Attempts
from mpq_compile.auto import AUTO, plan_auto
from mpq_compile.cost.latency import Z95, Observation
from mpq_compile.errors import InfeasibleBudgetError, PlanError
from mpq_compile.inverse import EVALUATIONS, Goal, cheapest
from mpq_compile.judging import MEASURES, Evaluate, Judge, is_named
from mpq_compile.recipe import Recipe
from mpq_compile.recording import Recording
from mpq_compile.runtime.artifact import write_verification
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.runtime.verify import verify_artifact
from mpq_compile.session import Session
from mpq_compile.types import Budget, Plan, Verification

log = logging.getLogger(__name__)

MAX_ROUNDS = 5


def goal_of(
    session: Session,
    budget: Budget,
    minimize: str | None,
    evaluate: Evaluate | str | None,
    evaluations: int,
) -> Goal | None:
    """Return what is minimised; None where that is the loss."""
    if evaluate is not None and budget.max_drop is None:
        raise PlanError(
            "evaluate measures a drop that nothing bounds",
            where="evaluate",
            expected="Budget(max_drop=...) beside it",
            found=", ".join(budget.given()) or "no budget",
            remedy="bound the drop, or ask `frontier` to measure points of the whole trade-off",
        )
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
        judge = Judge(session, evaluate or "top1", session.held_out)
    return Goal(objective=minimize or "latency", judge=judge, evaluations=evaluations)


def recipe_for(recipe: Recipe, budget: Budget, evaluate: Evaluate | str | None) -> Recipe:
    """Return the recipe, with samples of its own for a drop that is bounded and has no function."""
    return recipe.judged_apart() if budget.max_drop is not None and is_named(evaluate) else recipe


def plan_within(session: Session, budget: Budget, goal: Goal | None) -> Plan:
    """Return the best plan that is predicted to keep the budget."""
    session.check_database()
    if goal is None:
        return plan_auto(session, budget) if session.solver == AUTO else session.solve(budget)
    found = cheapest(session, budget, goal)
    notes = [*found.notes, *_remarks(session, goal)]
    return session.plan_for(found.assignment, budget, found.solution, notes)


def _remarks(session: Session, goal: Goal) -> Iterator[str]:
    """Say what a user may take for granted and is not so."""
    if session.solver not in ("exact", AUTO):
        yield f"the least cost within a loss is solved exactly; {session.solver!r} was not used"
    if goal.judge is None or goal.judge.name not in MEASURES:
        return
    if session.held_out is session.batches:
        yield (
            "the drop was measured on the calibration samples, which ranges and codes were fitted "
            "to, and tends to be larger on others; a function as evaluate measures on data of yours"
        )
    else:
        count = sum(batch.samples for batch in session.held_out)
        yield f"the drop was measured on {count} samples that nothing was fitted to"


def compile_session(
    session: Session,
    budget: Budget,
    minimize: str | None = None,
    evaluate: Evaluate | str | None = None,
    verify: bool = True,
    evaluations: int = EVALUATIONS,
) -> CompiledNetwork:
    """Plan, build and measure until a network keeps the budget.

    It goes on where the budget is missed, and also where the network that keeps it leaves no room
    for the drift of the device, or much more than that: see :mod:`attempts`. Where nothing kept it
    and the machine did not settle, the last network that says so is returned, as inconclusive.

    Raises:
        InfeasibleBudgetError: No assignment was measured within the budget.
    """
    session.check_database()
    goal = goal_of(session, budget, minimize, evaluate, evaluations)
    timed = not session.analytic and (verify or _bounds_latency(budget))
    if not timed:
        return session.build(plan_within(session, budget, goal))
    attempts = Attempts(budget, session.costing.latency.errors.drift)
    recording = Recording(session)
    unsettled: CompiledNetwork | None = None
    for number in range(1, MAX_ROUNDS + 1):
        try:
            plan = _aimed_plan(session, attempts, goal)
        except InfeasibleBudgetError as error:
            # What did not settle proves nothing infeasible.
            if attempts.any or unsettled is not None:
                break
            raise _attainable(error, attempts) from error
        if not attempts.is_worth_building(plan):
            break
        network = session.build(plan)
        seen = verified(network, budget.given(), number)
        attempts.add(network, seen)
        recording.add(plan, seen)
        if seen.status == "unbounded":
            return recording.kept_in(network)
        if seen.status == "inconclusive" and attempts.any:
            break
        # What is slow beside other work may have a cheaper neighbour that keeps the budget even so.
        unsettled = network if seen.status == "inconclusive" else unsettled
        if attempts.enough or (attempts.any and goal is not None):
            break
        if number < MAX_ROUNDS:
            learn(session, plan, seen, budget)
    if attempts.any:
        return recording.kept_in(attempts.best)
    if unsettled is not None:
        return recording.kept_in(unsettled)
    raise InfeasibleBudgetError(
        f"no assignment was measured within the budget in {MAX_ROUNDS} rounds",
        expected=", ".join(f"{k}={v:g}" for k, v in budget.given().items()),
        found=f"{attempts.least_seen_ms:.4g} ms at the least",
        remedy="raise the latency budget, or free the machine of other work",
    )


def _bounds_latency(budget: Budget) -> bool:
    return budget.latency_ms is not None or budget.latency_p95_ms is not None


def verified(network: CompiledNetwork, budget: Mapping[str, float], number: int) -> Verification:
    """Measure a network, judge it, and write the verdict into its artifact."""
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


def _aimed_plan(session: Session, attempts: Attempts, goal: Goal | None) -> Plan:
    """Return a plan that is likely to be measured within the budget, not just predicted so.

    Where nothing is as fast as what is aimed at, the budget itself is tried.
    """
    budget = attempts.budget
    if _bounds_latency(budget):
        with suppress(InfeasibleBudgetError):
            near = session.solve(budget).assignment
            aim = attempts.aimed(session.costing.prediction_error(near))
            return replace(plan_within(session, aim, goal), budget=budget.given())
    return plan_within(session, budget, goal)


def learn(session: Session, plan: Plan, seen: Verification, budget: Budget) -> None:
    """Let the latency model know what was measured; the next plan follows from it."""
    half_width = (seen.latency_ms_upper95 - seen.latency_ms_lower95) / (2 * Z95 * seen.latency_ms)
    session.costing.learn(
        Observation(
            assignment=plan.assignment,
            latency_us=1e3 * seen.latency_ms,
            error=max(LEAST_ERROR, half_width),
            run=session.costing.latency.next_run,
            # Where the machine did not settle the next round will hardly find it better, and is to
            # find a network that keeps the budget even so.
            settled=True,
        )
    )
    if budget.latency_p95_ms is not None:
        session.costing.p95_ratio = max(1.0, seen.latency_p95_ms_upper95 / seen.latency_ms)
    log.info("measured %.4g ms, predicted %.4g", seen.latency_ms, plan.predicted.latency_ms)


def _attainable(error: InfeasibleBudgetError, attempts: Attempts) -> InfeasibleBudgetError:
    """Say what was measured, and where the machine is to blame for it."""
    if attempts.least_seen_ms == float("inf"):
        return error
    message, remedy = error.message, error.remedy
    if not attempts.settled:
        message = f"{message}, as measured on a machine that was not as usual"
        remedy = f"free the machine of other work and repeat; else {remedy}"
    return InfeasibleBudgetError(
        message,
        expected=error.expected,
        found=f"{error.found}; the fastest network built measured {attempts.least_seen_ms:.4g} ms",
        remedy=remedy,
    )
