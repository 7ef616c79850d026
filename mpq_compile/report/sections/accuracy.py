"""Loss of accuracy, and what the solver proved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mpq_compile.report.blocks import Block, Facts, Missing, Prose, Section
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.spelling import number, percent
from mpq_compile.types import NETWORK, Plan, Predicted


def accuracy_section(evidence: Evidence) -> Section:
    """Return the loss, its certificate in words, and what was measured on the task."""
    plan = evidence.plan
    blocks: list[Block] = [Prose(text=_proof(plan))]
    blocks.append(Facts(rows=list(_facts(plan))))
    blocks.append(_measured(evidence))
    return Section(
        id="accuracy",
        name="Accuracy",
        title="Accuracy and proof",
        lead="The solver minimises a metric of the loss against the float network; what it "
        "proves, it proves of that metric.",
        blocks=blocks,
    )


def _proof(plan: Plan) -> str:
    certificate = plan.certificate
    bound, gap = certificate.get("bound"), certificate.get("gap")
    if plan.loss is None or not certificate:
        return "The bits were given, not solved for: there is no proof that others lose less."
    loss = f"The plan loses {number(plan.loss)} by {plan.metric}."
    if certificate.get("objective") == NETWORK:
        loss = (
            f"The quantized network itself was run with {certificate['evaluations']} assignments; "
            f"this one lost least on the calibration data, {number(certificate['loss'])}. {loss}"
        )
    if plan.minimised:
        return f"{loss} {_cost_proof(plan)}"
    if certificate.get("status") == "optimal" and bound is not None:
        return (
            f"{loss} Proven optimal: no assignment that the tables predict within the budget "
            f"loses less than {number(bound)}."
        )
    if bound is None:
        return f"{loss} The solver {plan.solver} proves nothing of how much less could be lost."
    return (
        f"{loss} No assignment that the tables predict within the budget loses less than "
        f"{number(bound)}: at most {number(plan.loss - bound)} could be gained "
        f"({percent((plan.loss - bound) / plan.loss if plan.loss else 0.0)} of the loss, "
        f"gap {number(gap)})."
    )


def _cost_proof(plan: Plan) -> str:
    """Say what is proven of a plan whose cost was minimised: its bound is no bound on the loss."""
    objective, gap = plan.minimised, plan.certificate.get("gap")
    if plan.certificate.get("status") == "optimal":
        return (
            f"Its {objective} was minimised. Proven optimal: no assignment that the tables predict "
            f"to lose no more, within the budget, has a lower {objective}."
        )
    return f"Its {objective} was minimised; the solver leaves a gap of {number(gap)}."


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    certificate = plan.certificate
    yield "metric", plan.metric
    yield "loss", number(plan.loss)
    if objective := plan.minimised:
        yield "minimised", objective
    else:
        yield "proven bound", number(certificate.get("bound"))
    yield "gap", number(certificate.get("gap"))
    yield "solver", f"{plan.solver} ({certificate.get('status', 'no status')})"
    if certificate.get("wall_s") is not None:
        yield "time to solve", f"{number(certificate['wall_s'], 3)} s"
    for axis, price in (certificate.get("multipliers") or {}).items():
        if axis in _PRICES and price is not None and not plan.minimised:
            yield _price(plan, axis, price)


# Axis of the solver → what one more of it is called, the step that is priced, and its usage.
_PRICES: Mapping[str, tuple[str, str, float, Callable[[Predicted], float | None]]] = {
    "latency_us": ("time", "µs", 1.0, lambda p: 1e3 * (p.latency_ms or 0.0)),
    "size_bytes": ("size", "kB", 1e3, lambda p: p.size_bytes),
    "bops": ("bit operations", "MBOPs", 1e6, lambda p: p.bops),
    "energy_mj": ("energy", "mJ", 1.0, lambda p: p.energy_mj),
}


def _price(plan: Plan, axis: str, price: float) -> tuple[str, str]:
    """Return what one step more of a bound would gain, by the solver's multiplier."""
    name, unit, step, usage_of = _PRICES[axis]
    gained = price * (usage_of(plan.predicted) or 0.0)
    if plan.loss is None or gained < 1e-6 * abs(plan.loss):
        return f"bound on {name}", "does not limit the loss here"
    return f"bound on {name}", f"about {number(price * step, 3)} less loss for one {unit} more"


def _measured(evidence: Evidence) -> Block:
    drop = evidence.plan.certificate.get("drop")
    if drop is not None:
        return Prose(
            text=f"Measured on the task ({drop['measure']}): {number(drop['value'])} "
            f"{drop['unit']} worse than float, within the limit of {number(drop['limit'])}; "
            f"{drop['measured']} assignments were measured."
        )
    return Missing(
        text="Accuracy on the task was not measured for this plan. A bound such as "
        "Budget(max_drop=…), or a frontier with evaluate=…, measures it."
    )
