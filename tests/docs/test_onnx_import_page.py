"""The page on ONNX names the operator set that files are converted to."""

from __future__ import annotations

from pages import read

from mpq_compile.onnx_import.source import OPSET


def test_the_opset_is_the_one_named() -> None:
    assert f"opset {OPSET}" in read("onnx.md").partition("## Import")[2].partition("\n## ")[0]
