"""The page on ``torch.compile`` names every option of the backend."""

from __future__ import annotations

from dataclasses import fields

from pages import read

from mpq_compile.integrations.backend_options import BackendOptions


def test_every_option_is_named() -> None:
    listed = read("torch_compile.md").partition("## Options")[2]
    missing = [f.name for f in fields(BackendOptions) if f"`{f.name}`" not in listed]
    assert missing == ["recipe"]
