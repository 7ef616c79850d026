"""The page on black boxes names the examples that there are; ``test_pages`` runs its code."""

from __future__ import annotations

import re

from pages import ROOT, read


def test_the_examples_are_those_of_the_folder() -> None:
    named = set(re.findall(r"^- `(\w+\.py)`:", read("black_box.md"), re.M))
    assert named == {path.name for path in (ROOT / "examples" / "black_box").glob("*.py")}
