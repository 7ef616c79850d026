"""A ``.onnx`` file as the model of a verb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from verbs import Mpq


def write(path: Path) -> Path:
    """A convolution, ReLU, mean and linear layer over [N, 3, 8, 8]."""
    random = np.random.default_rng(0)
    arrays = {
        "conv.weight": random.standard_normal((8, 3, 3, 3)),
        "fc.weight": random.standard_normal((4, 8)),
        "fc.bias": random.standard_normal(4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_plan(mpq: Mpq, place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    options = ("--data", place / "data.npz", "--target", "bit_serial", "--candidates", "w8a8")
    result = mpq("plan", path, *options, "--json")
    assert result.code == 0, result.err
    assert result.json["assignment"] == {"conv:conv2d#0": "w8a8", "fc:linear#0": "w8a8"}


def test_a_damaged_file_is_wrong_input(mpq: Mpq, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x07\x12\xff")
    result = mpq("plan", path, "--data", place / "data.npz", "--json")
    assert result.code == 2
    assert "damaged" in result.err + result.out
