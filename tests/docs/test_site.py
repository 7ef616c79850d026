"""The site builds without a warning where what builds it is installed, and loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, read

import mpq_compile


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does."""
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason="needs pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe)[^>]*\bsrc=\"(?:https?:)?//|<link[^>]*href=\"//")
    style = re.compile(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"https?:")
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert [name for name, text in pages.items() if loads.search(text) or style.search(text)] == []


def test_equations_verbs_and_tables_are_in_it(site: Path) -> None:
    methods = (site / "methods.html").read_text(encoding="utf-8")
    assert methods.count("<math") == read("methods.md").count("```math")
    assert "mean top-1" in methods and "--8&lt;--" not in methods
    assert "--candidates" in (site / "command_line.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name() -> None:
    page = read("reference.md")
    named = {name for text in re.findall(r"^::: mpq_compile\.(.+)$", page, re.M) for name in [text]}
    listed = set(re.search(r"errors\n    options: \{members: \[(.*?)\]", page)[1].split(", "))
    public = set(mpq_compile.__all__) - {"__version__"}
    assert public - named - listed == set()
