"""The page on new accelerators: its files are the example's; ``test_pages`` does what it says."""

from __future__ import annotations

from pages import ROOT, blocks

EXAMPLE = ROOT / "examples" / "accelerator"
BLOCKS = blocks("new-accelerator.md")


def test_every_block_is_a_file_or_commands_with_their_output() -> None:
    assert all((b.kind == "sh") == (b.file is None) for b in BLOCKS if b.kind != "text")
    assert sum(bool(b.shown) for b in BLOCKS) == sum(b.kind == "text" for b in BLOCKS) == 2


def test_the_files_are_those_of_the_example() -> None:
    files = {b.file: b.text for b in BLOCKS if b.file is not None}
    assert {p.name: p.read_text(encoding="utf-8") for p in EXAMPLE.glob("*.*")} == files
