"""A plan or a network as notebooks show it: a small table in the notebook's own colours."""

from __future__ import annotations

from mpq_compile.report.evidence import Source, evidence_of
from mpq_compile.report.page import environment, tiles
from mpq_compile.report.sections.promise import bound_row
from mpq_compile.report.verdicts import verdicts, worst

# Rows of sites that are shown before the rest is folded away.
SHOWN = 8


def card(source: Source) -> str:
    """Return the markup of a card; its style reaches nothing outside of it."""
    evidence = evidence_of(source, "mpq_compile network")
    plan = evidence.plan
    sites = list(plan.assignment.items())
    found = verdicts(evidence)
    return (
        environment()
        .get_template("card.html")
        .render(
            title="CompiledNetwork" if evidence.built else "Plan",
            target=plan.target,
            verdict=worst(found),
            tiles=tiles(evidence),
            bounds=[bound_row(each) for each in found],
            shown=sites[:SHOWN],
            rest=sites[SHOWN:],
            notes=plan.notes,
        )
    )
