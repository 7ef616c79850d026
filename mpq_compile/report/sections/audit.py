"""What really runs at each site."""

from __future__ import annotations

from mpq_compile.report.blocks import Block, Cell, Column, Missing, Section, Table
from mpq_compile.report.evidence import Evidence
from mpq_compile.types import AuditRow

_COLUMNS = (
    Column(title="Site"),
    Column(title="Requested"),
    Column(title="Bits stored", numeric=True),
    Column(title="Computes in"),
    Column(title="Kernel"),
    Column(title="Tier"),
)


def audit_section(evidence: Evidence) -> Section:
    """Return a row for each site, and for each operator that runs in float."""
    block: Block
    if evidence.audit:
        rows = [_row(row) for row in evidence.audit]
        block = Table(name="audit", columns=_COLUMNS, rows=rows, sortable=True)
    else:
        block = Missing(text="Nothing was built: what would run at each site is not known.")
    return Section(
        id="audit",
        name="Audit",
        title="Audit",
        lead="Requested bits, stored bits and the kernel that runs. A silent fallback would be an "
        "error when the network is built.",
        blocks=[block],
    )


def _row(row: AuditRow) -> list[Cell]:
    return [
        Cell(text=row.site, code=True),
        Cell(text=row.requested),
        Cell(text=str(row.stored_bits), order=row.stored_bits),
        Cell(text=row.compute),
        Cell(text=row.kernel, code=True),
        Cell(text=row.tier),
    ]
