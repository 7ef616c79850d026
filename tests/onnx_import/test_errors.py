"""Files that cannot be read, and inputs that do not fit, say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx_files import export, small

from mpq_compile.capture import capture
from mpq_compile.errors import CaptureError, UnsupportedOpError
from mpq_compile.onnx_import.source import OPSET


def file_of(path: Path, nodes: Sequence[NodeProto], shape: Sequence[object] = (1, 4)) -> Path:
    """Write a model from ``x`` to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(list(nodes), "graph", [x], [y], [weight])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")


def test_no_such_file() -> None:
    with pytest.raises(CaptureError, match="no such file"):
        capture("absent.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.mkdir()
    with pytest.raises(CaptureError, match="found: a folder"):
        capture(path)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x01"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match="no ONNX model") as caught:
        capture(path)
    assert "opset" not in str(caught.value)


def test_what_is_expected_of_an_opset_is_what_the_remedy_says(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    with pytest.raises(CaptureError, match="not valid ONNX") as caught:
        capture(file_of(tmp_path / "net.onnx", [node]))
    for text in (caught.value.expected, caught.value.remedy):
        assert f"opset {OPSET} or lower" in str(text)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = export(small(), torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CaptureError, match="damaged"):
        capture(path)


def test_external_data_are_missing(tmp_path: Path) -> None:
    path = file_of(tmp_path / "net.onnx", [PRODUCT])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    with pytest.raises(CaptureError, match="external data"):
        capture(path)


def test_an_unsupported_operator(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["z"], name="which")
    cast = helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedOpError) as caught:
        capture(file_of(tmp_path / "net.onnx", [node, cast]))
    text = str(caught.value)
    assert "'which'" in text and "NonZero" in text and "opset 17" in text and "remedy" in text


def test_an_operator_of_a_runtime(tmp_path: Path) -> None:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    with pytest.raises(UnsupportedOpError, match="com.microsoft.FusedMatMul"):
        capture(file_of(tmp_path / "net.onnx", [node]))


def test_a_shape_that_depends_on_data(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["shape"], to=TensorProto.INT64)
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    with pytest.raises(UnsupportedOpError, match="computed from data"):
        capture(file_of(tmp_path / "net.onnx", [cast, node], [4]))


def test_sizes_that_the_file_leaves_free(tmp_path: Path) -> None:
    path = file_of(tmp_path / "net.onnx", [PRODUCT], ["batch", "length", 4])
    with pytest.raises(CaptureError, match=r"\[\?, \?, 4\]"):
        capture(path)
    assert capture(path, torch.zeros(1, 3, 4)).dynamic_batch


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(1, 5), torch.zeros(1, 4).double(), torch.zeros(4), (torch.zeros(1, 4),) * 2],
)
def test_inputs_that_do_not_fit(tmp_path: Path, inputs: object) -> None:
    with pytest.raises(CaptureError, match="do not fit"):
        capture(file_of(tmp_path / "net.onnx", [PRODUCT]), inputs)


def test_halves_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path / "net.onnx", [PRODUCT])
    model = onnx.load(path)
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    with pytest.raises(CaptureError, match="float32"):
        capture(path)
