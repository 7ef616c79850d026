"""Promise against measurement, bound by bound."""

from __future__ import annotations

from mpq_compile.report.blocks import Block, Cell, Column, Prose, Section, Table
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.figures import used_budget
from mpq_compile.report.spelling import BOUNDS, UNKNOWN, percent
from mpq_compile.report.verdicts import Estimate, Verdict, verdict, verdicts

# What is shown of a network without a budget, or beside it.
_ALWAYS = ("latency_ms", "size_mb", "bops", "avg_bits")
_MARKS = {"kept": "✓", "missed": "✗", "inconclusive": "?", "not measured": "–"}


def promise_section(evidence: Evidence) -> Section:
    """Return the budget's bounds, then what the budget leaves free."""
    bounded = verdicts(evidence)
    known = _ALWAYS if evidence.plan.predicted.energy_mj is None else (*_ALWAYS, "energy_mj")
    free = [verdict(evidence, name, None) for name in known if name not in evidence.plan.budget]
    blocks: list[Block] = []
    if not bounded:
        blocks.append(Prose(text="The plan has no budget: nothing was promised."))
    rows = [bound_row(each) for each in (*bounded, *free)]
    blocks.append(Table(name="bounds", columns=_COLUMNS, rows=rows, stacked=True))
    return Section(
        id="promise",
        name="Promise",
        title="Promise and measurement",
        lead="A bound on time is kept where the upper end of the measured 95 % interval is "
        "within it. Sizes and operations are counted, and have no interval.",
        blocks=blocks,
    )


_COLUMNS = (
    Column(title="Cost"),
    Column(title="Promised", numeric=True),
    Column(title="Predicted", numeric=True),
    Column(title="Measured", numeric=True),
    Column(title="Used of the bound"),
    Column(title="Verdict"),
)


def bound_row(found: Verdict) -> list[Cell]:
    """Return the cells of a bound: cost, promised, predicted, measured, used, verdict."""
    spell = BOUNDS[found.bound].spell
    promised = Cell(text=UNKNOWN if found.promised is None else f"≤ {spell(found.promised)}")
    return [
        Cell(text=BOUNDS[found.bound].title),
        promised,
        _estimate(found.predicted, found.bound),
        _estimate(found.measured, found.bound),
        _used(found),
        _verdict(found),
    ]


def _estimate(estimate: Estimate | None, bound: str) -> Cell:
    spell = BOUNDS[bound].spell
    if estimate is None:
        return Cell(text=UNKNOWN)
    if estimate.upper is None:
        return Cell(text=spell(estimate.value))
    if estimate.lower is None:
        return Cell(text=spell(estimate.value), note=f"95 %: up to {spell(estimate.upper)}")
    interval = f"95 %: {spell(estimate.lower)} to {spell(estimate.upper)}"
    return Cell(text=spell(estimate.value), note=interval)


def _used(found: Verdict) -> Cell:
    known = found.found
    if found.promised is None or not found.promised or known is None:
        return Cell()
    share = percent(known.value / found.promised)
    kind = "measured" if found.measured else "predicted"
    label = f"{share} of the bound, {kind}"
    return Cell(
        text=share,
        note="" if found.measured else "predicted",
        figure=used_budget(found.promised, known, label, found.word),
    )


def _verdict(found: Verdict) -> Cell:
    if found.promised is None:
        return Cell(text="no bound", note=found.reason)
    word = f"{_MARKS[found.word]} {found.word}"
    return Cell(text=word, tint=found.word.replace(" ", "-"), note=found.reason)
