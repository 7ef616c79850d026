"""What is shown of an assignment that was given, for which nothing was compared."""

from __future__ import annotations

from report_examples import plan
from rich.console import Console

from mpq_compile.commands.views import candidate_table, show_plan


def test_its_sites_and_candidates_are_shown() -> None:
    given = plan(table=[], certificate={}, solver="given", assignment={"a": "w8a8", "b": "bf16"})
    console = Console(record=True, width=100)
    console.print(candidate_table(given))
    show_plan(console, given)
    text = console.export_text()
    for site, candidate in given.assignment.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {site} ")]
        assert candidate in line and "●" in line
    assert "none: the assignment was given" in text
