"""The composition of the stages: plan, compile, assign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from mpq_compile.closed_loop import compile_session, goal_of, plan_within, recipe_for, verified
from mpq_compile.cost.targets import TargetLike
from mpq_compile.deploy import complete_assignment
from mpq_compile.inverse import EVALUATIONS
from mpq_compile.judging import Evaluate
from mpq_compile.recipe import Recipe, RecipeOptions
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.search.policy import Policy
from mpq_compile.session import Session
from mpq_compile.types import Budget, Plan


def plan(
    model: Any,
    example_inputs: Any,
    calibration: Any,
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
    tuned: bool = True,
    measure_s: float | None = None,
    policy: Policy | None = None,
    **recipe: Unpack[RecipeOptions],
) -> Plan:
    """Choose the bits of every site: least loss within ``budget`` on ``target``.

    Args:
        model: ``nn.Module``, ``ExportedProgram`` or path of a ``.pt2`` or ``.onnx`` file. A module
            is taken as in eval mode, whatever mode it is in, and keeps that mode.
        example_inputs: Tensor or tuple of tensors of the deployed shapes.
        calibration: Iterable of input batches, or of (inputs, labels), tensors or arrays; or the
            path of a ``.npz`` file or of a folder of images, an :class:`ImageFolder`, a DataLoader,
            a Dataset, or a data set of Hugging Face's.
        target: Name or path of a hardware profile ("local" is this machine), or the address of a
            remote device: ``rpc://host:port/KEY``, ``{"rpc": {"tracker": "host:port", "key": …}}``.
        budget: Bounds on the result; none gives the most accurate candidate everywhere.
        metric: Sensitivity metric by name.
        solver: Solver by name; ``minimize`` is always solved exactly.
        candidates: Names to choose from; None for the profile's defaults.
        constraints: ``{"conv1": "w8a8", "re:.*fc": ["w8a8", "w4a8"]}`` pins sites; the path of a
            module means all sites in it.
        seed: Recorded. Which samples are drawn from a data set or a folder, and what a loader
            shuffles by: global random generators are seeded while data is read. Every other stage
            is deterministic.
        minimize: With ``Budget(max_drop=…)`` or ``Budget(max_loss=…)``: "latency", "size", "bops"
            or "energy".
        evaluate: ``evaluate(net) -> float``, higher is better; measures ``max_drop``. Or what to
            measure on calibration data that is held out: "top1" (the default: share (%) of samples
            whose top-1 differs from float), "kl", "noise" or, with labels, "accuracy".
        evaluations: Most assignments that are measured to keep ``max_drop``.
        allow_float: Run operators without a rule in float on TVM; the audit shows them.
        tuned: Search schedules of kernels (``MPQ_TUNE`` bounds the time); False leaves them to
            the cost model.
        measure_s: Seconds to spend on what was never measured on the target: tuning, kernels,
            then whole networks, which are begun only while there is time. Kernels that are left
            are estimated from those that were measured, and the plan says so. None measures all.
        policy: Take these bits, found by :func:`mpq_compile.search_policy` on the same
            architecture, instead of ``constraints``; the budget is checked.
        recipe: How the network is quantized beyond its bits, by keyword: see :class:`Recipe`.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message says what is attainable.
        CalibrationError, CaptureError, UnsupportedOpError, ProfileError, PlanError: Bad input.
    """
    bounds = Budget.of(budget)
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric=metric,
        solver=solver,
        recipe=recipe_for(Recipe(**recipe), bounds, evaluate),
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
        measure_s=measure_s,
    )
    if policy is not None:
        session.pin(policy.assignment_for(session.network))
    goal = goal_of(session, bounds, minimize, evaluate, evaluations)
    found = plan_within(session, bounds, goal)
    return found if policy is None else replace(found, notes=[*found.notes, policy.note])


def compile(  # noqa: A001 - the public name
    model: Any,
    example_inputs: Any,
    calibration: Any,
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
    verify: bool = True,
    tuned: bool = True,
    measure_s: float | None = None,
    **recipe: Unpack[RecipeOptions],
) -> CompiledNetwork:
    """Plan, build and measure until the network keeps its budget on the device.

    Arguments are those of :func:`plan`, and:

    Args:
        plan: Build this plan instead of making one, with the recipe that it was made with; its
            budget is checked, not solved for.
        verify: Measure latency in fresh processes (always done where the budget bounds it).

    Returns:
        The network; ``net.verification`` holds what was measured.

    Raises:
        InfeasibleBudgetError: No assignment was measured within the budget.
    """
    bounds = Budget.of(budget)
    if plan is None:
        how = recipe_for(Recipe(**recipe), bounds, evaluate)
    else:
        how = Recipe.of_plan(plan.provenance)
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        candidates,
        constraints,
        metric=metric,
        solver=solver,
        recipe=how,
        allow_float=allow_float,
        seed=seed,
        tuned=tuned,
        measure_s=measure_s,
    )
    if plan is not None:
        return build_given(session, plan, verify)
    return compile_session(session, bounds, minimize, evaluate, verify, evaluations)


def build_given(session: Session, plan: Plan, verify: bool) -> CompiledNetwork:
    """Build a plan within a session, and measure it against the plan's own budget."""
    assignment = complete_assignment(session.network, plan.assignment)
    network = session.build(replace(plan, assignment=assignment))
    if verify and not session.analytic:
        verified(network, plan.budget, 1)
    return network


def assign(
    model: Any,
    example_inputs: Any,
    calibration: Any,
    assignment: str | Mapping[str, str] | Policy | Plan,
    target: TargetLike = "local",
    allow_float: bool = False,
    verify: bool = False,
    tuned: bool = True,
    **recipe: Unpack[RecipeOptions],
) -> CompiledNetwork:
    """Build a given assignment: one candidate for all sites, a mapping from site id, a policy, or
    that of a plan.

    Raises:
        PlanError: A name is unknown, the target does not support it at a site, or the policy is of
            another network.
    """
    session = Session(
        model,
        example_inputs,
        calibration,
        target,
        recipe=Recipe(**recipe),
        allow_float=allow_float,
        tuned=tuned,
    )
    return assign_session(session, assignment, verify)


def assign_session(
    session: Session, assignment: str | Mapping[str, str] | Policy | Plan, verify: bool = False
) -> CompiledNetwork:
    """Build an assignment within a session."""
    if isinstance(assignment, Policy):
        assignment = assignment.assignment_for(session.network)
    elif isinstance(assignment, Plan):
        assignment = assignment.assignment
    full = complete_assignment(session.network, assignment)
    for site in session.network.sites:
        session.profile.candidates_for(site, [full[site.id]])
    network = session.build(session.bare_plan(full))
    if verify:
        verified(network, {}, 1)
    return network
