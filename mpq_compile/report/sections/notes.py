"""What the planner and the compiler had to say."""

from __future__ import annotations

from mpq_compile.report.blocks import Block, Items, Prose, Section
from mpq_compile.report.evidence import Evidence


def notes_section(evidence: Evidence) -> Section:
    """Return the notes of the plan, then those of the build."""
    notes = list(dict.fromkeys([*evidence.plan.notes, *evidence.notes]))
    block: Block = Items(rows=notes) if notes else Prose(text="There are no notes.")
    return Section(id="notes", name="Notes", title="Notes", blocks=[block])
