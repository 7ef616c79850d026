"""Files with QuantizeLinear and DequantizeLinear: their codes and ranges are those that run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from mpq_compile.capture import capture
from mpq_compile.onnx_import.constants import fold_constants
from mpq_compile.onnx_import.naming import parameter_paths
from mpq_compile.onnx_import.network import OnnxNetwork
from mpq_compile.onnx_import.operators import OPERATORS
from mpq_compile.onnx_import.program import program_of
from mpq_compile.onnx_import.source import read
from mpq_compile.passes.fixed_qparams import fixed_candidates, fixed_ranges, fixed_weights
from mpq_compile.passes.network import prepare
from mpq_compile.session import Session

RANDOM = np.random.default_rng(0)
X = torch.from_numpy(RANDOM.standard_normal((8, 3, 6, 6)).astype(np.float32))


def qdq(name: str, source: str, scale: float, zero: int, dtype: type) -> list[object]:
    """Return a pair around ``source``, and its constants."""
    return [
        helper.make_node("QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name]),
        numpy_helper.from_array(np.float32(scale), f"{name}_s"),
        numpy_helper.from_array(np.asarray(zero, dtype), f"{name}_z"),
    ]


def convolution(zero: int = 0) -> list[object]:
    """conv (int8, by channel) of an int8 input, ReLU."""
    codes = RANDOM.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
    scale = RANDOM.uniform(0.001, 0.01, 8).astype(np.float32)
    return [
        *qdq("xr", "x", 0.03, 4, np.int8),
        numpy_helper.from_array(codes, "conv.weight_quantized"),
        numpy_helper.from_array(scale, "ws"),
        numpy_helper.from_array(np.full(8, zero, np.int8), "wz"),
        helper.make_node("DequantizeLinear", ["conv.weight_quantized", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["xr", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
    ]


def linear() -> list[object]:
    """mean, then a linear layer (int4 by blocks of 4 inputs) of a uint8 input."""
    codes = RANDOM.integers(-8, 8, (8, 5)).astype(np.int8)
    scale = RANDOM.uniform(0.01, 0.1, (2, 5)).astype(np.float32)
    packed = helper.make_tensor("fc.weight_quantized", TensorProto.INT4, (8, 5), codes)
    return [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"], keepdims=0),
        *qdq("mr", "m", 0.01, 0, np.uint8),
        packed,
        numpy_helper.from_array(scale, "fs"),
        helper.make_node(
            "DequantizeLinear", ["fc.weight_quantized", "fs"], ["f"], axis=0, block_size=4
        ),
        helper.make_node("MatMul", ["mr", "f"], ["y"]),
    ]


def file_of(path: Path, parts: list[object]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])
    nodes = [part for part in parts if isinstance(part, onnx.NodeProto)]
    constants = [part for part in parts if isinstance(part, TensorProto)]
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def as_written(path: Path, x: Tensor) -> Tensor:
    """Return what the file computes, every pair as it is written."""
    program = fold_constants(program_of(read(path, OPERATORS)))
    found = OnnxNetwork(program, parameter_paths(program, {}))(x)
    assert isinstance(found, Tensor)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return file_of(tmp_path / "net.onnx", [*convolution(), *linear()])


def test_codes_and_ranges_are_read(path: Path) -> None:
    network = prepare(capture(path))
    weights = fixed_weights(network)
    assert [site.path for site in network.sites] == ["conv", "fc"]
    assert fixed_candidates(network) == {
        "conv:conv2d#0": "w8a8",
        "fc:linear#0": "w4a8g4",
    }
    assert weights["fc:linear#0"].scale.shape == (5, 2)
    ranges = {bits: (q.scale, q.zero_point) for (_, bits), q in fixed_ranges(network).items()}
    assert len(fixed_ranges(network)) == 2 and ranges[8] == (pytest.approx(0.01), 0)
    signed = next(iter(fixed_ranges(network).values()))
    assert signed.zero_point == 4 + 128  # int8 codes are moved to unsigned ones


def test_the_quantized_network_is_the_file(path: Path) -> None:
    session = Session(path, None, [X], "bit_serial")
    assignment = {"conv:conv2d#0": "w8a8", "fc:linear#0": "w4a8g4"}
    assert session.recipe.rounding == "gptq"
    calibration = session.rounded_for(assignment)
    assert session.recipe.rounding == "nearest"
    for site, weight in fixed_weights(session.network).items():
        assert torch.equal(calibration.weights[site, weight.spec].codes, weight.codes)
    with torch.no_grad():
        found, expected = session.reference(assignment)(X), as_written(path, X)
    # The mean between the layers is rounded with the file's range too: one step of it at most.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.05)


def test_plans_are_held_to_the_bits_of_the_file(path: Path) -> None:
    session = Session(path, None, [X], "bit_serial")
    assert session.choices["conv:conv2d#0"] == ["w8a8"]


def test_codes_that_no_site_can_take_are_calibrated(tmp_path: Path) -> None:
    path = file_of(tmp_path / "net.onnx", [*convolution(zero=3), *linear()])
    network = prepare(capture(path))
    assert set(fixed_weights(network)) == {"fc:linear#0"}
    with torch.no_grad():
        found = network.module(X)[0]
    assert found.isfinite().all()
