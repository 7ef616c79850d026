"""What each kernel of the network took, in the order in which they run."""

from __future__ import annotations

from mpq_compile.report.blocks import Block, Cell, Column, Facts, Missing, Section, Table
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.sections.sites import tint_of
from mpq_compile.report.spelling import duration, percent
from mpq_compile.report.verdicts import why_not_measured
from mpq_compile.runtime.trace import Trace, TracedStep

_COLUMNS = (
    Column(title="Site or node"),
    Column(title="Choice"),
    Column(title="Time, measured", numeric=True),
    Column(title="Share of time", numeric=True),
    Column(title="Threads busy", numeric=True),
    Column(title="Kernel"),
)


def kernels_section(evidence: Evidence) -> Section:
    """Return a row for each kernel of the traced network."""
    trace = evidence.trace
    blocks: list[Block]
    if trace is not None:
        blocks = [Facts(rows=_facts(trace)), _table(trace, evidence)]
    elif evidence.built and evidence.timed:
        blocks = [Missing(text="Kernels were not traced. `mpq trace` of the artifact does it.")]
    else:
        blocks = [Missing(text=f"Not measured: {why_not_measured(evidence)}.")]
    return Section(
        id="kernels",
        name="Kernels",
        title="Where the time goes",
        lead="Each kernel from the end of the one before it to its own end, within the running "
        "network. Threads that are not busy wait for each other.",
        blocks=blocks,
    )


def _facts(trace: Trace) -> list[tuple[str, str]]:
    added = sum(step.time_us for step in trace.steps)
    return [
        ("a call", duration(trace.call_us * 1e-3)),
        ("a traced call, first kernel to last", duration(trace.total_us * 1e-3)),
        ("medians of the kernels, added", duration(added * 1e-3)),
        ("calls", f"{trace.calls:,}"),
        ("threads", str(trace.threads)),
    ]


def _table(trace: Trace, evidence: Evidence) -> Table:
    most = max((step.time_us for step in trace.steps), default=1.0) or 1.0
    rows = [
        _row(step, evidence.plan.assignment.get(step.name), most, trace.total_us)
        for step in trace.steps
    ]
    return Table(name="kernels", columns=_COLUMNS, rows=rows, sortable=True)


def _row(step: TracedStep, choice: str | None, most: float, total: float) -> list[Cell]:
    tint = tint_of(choice) if choice else ""
    share = step.time_us / most
    return [
        Cell(text=step.name, code=True),
        Cell(text=choice or "", tint=tint),
        Cell(text=duration(step.time_us * 1e-3), order=step.time_us, share=share, tint=tint),
        Cell(text=percent(step.time_us / total), order=step.time_us),
        Cell(text=percent(step.busy), order=step.busy),
        Cell(text=step.kernel.removeprefix("k_"), code=True),
    ]
