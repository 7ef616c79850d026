"""Names of a registry: its own, and those of things that stand outside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq_compile.errors import MpqError
from mpq_compile.registry import SOLVERS


def test_names_of_a_module_and_of_a_file(tmp_path: Path) -> None:
    known = SOLVERS.load("greedy")
    assert SOLVERS.load("mpq_compile.solve.greedy:solve_greedy") is known
    file = tmp_path / "mine.py"
    file.write_text("from mpq_compile.solve.greedy import solve_greedy as mine\n", encoding="utf-8")
    assert SOLVERS.load(f"{file}:mine") is known


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nowhere.py:solve", "FileNotFoundError"),
        ("no_such_package.x:solve", "ModuleNotFoundError"),
        ("mpq_compile.solve.greedy:solve_greedily", "AttributeError"),
    ],
)
def test_what_cannot_be_imported_is_named(name: str, found: str) -> None:
    with pytest.raises(MpqError, match="cannot be imported") as caught:
        SOLVERS.load(name)
    assert found in str(caught.value)


def test_a_typo_suggests_the_nearest_name() -> None:
    with pytest.raises(MpqError, match="greedy"):
        SOLVERS.load("gredy")


@pytest.mark.parametrize("name", [None, 3, ["exact"]])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(MpqError, match="unknown solver"):
        SOLVERS.load(name)  # type: ignore[arg-type]
