"""The sections of a report, one a file, in the order of the page.

A section is a function from :class:`~mpq_compile.report.evidence.Evidence` to
:class:`~mpq_compile.report.blocks.Section`; to add one, write a file and a line below.
"""

from __future__ import annotations

from collections.abc import Callable

from mpq_compile.report.blocks import Section
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.sections.accuracy import accuracy_section
from mpq_compile.report.sections.audit import audit_section
from mpq_compile.report.sections.kernels import kernels_section
from mpq_compile.report.sections.measurement import measurement_section
from mpq_compile.report.sections.notes import notes_section
from mpq_compile.report.sections.prediction import prediction_section
from mpq_compile.report.sections.promise import promise_section
from mpq_compile.report.sections.provenance import provenance_section
from mpq_compile.report.sections.sites import sites_section
from mpq_compile.report.sections.tradeoff import tradeoff_section

SECTIONS: tuple[Callable[[Evidence], Section], ...] = (
    promise_section,
    accuracy_section,
    sites_section,
    tradeoff_section,
    prediction_section,
    measurement_section,
    kernels_section,
    audit_section,
    provenance_section,
    notes_section,
)
