"""ONNX Runtime's MatMulNBits on rotating weights."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from contenders.gemv import GROUP, GemvTask, random_codes
from contenders.saved_models import load_onnx
from contenders.task import Prepared


def prepare(task: GemvTask, bits: int, accuracy_level: int) -> Prepared:
    """Load one graph with a MatMulNBits for each copy, all reading the same row.

    Args:
        task: Sizes.
        bits: Of the weights, in blocks of ``GROUP``.
        accuracy_level: 0 for float32 activations, 4 for int8.
    """
    model = _model(task, bits, accuracy_level)
    copies = len(model.graph.node)
    serialized = model.SerializeToString()
    del model  # a gigabyte
    run = load_onnx(serialized, task.threads)
    return Prepared(run=lambda x: run(x.numpy()), example=task.example, repeats=copies)


def _model(task: GemvTask, bits: int, accuracy_level: int) -> ModelProto:
    copies = range(task.copies(bits))
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", f"weight{i}", f"scale{i}"], [f"out{i}"],
            domain="com.microsoft", K=task.inputs, N=task.outputs, bits=bits,
            block_size=GROUP, accuracy_level=accuracy_level,
        )
        for i in copies
    ]  # fmt: skip
    results = [_float_tensor(f"out{i}", task.outputs) for i in copies]
    graph = helper.make_graph(nodes, "gemv", [_float_tensor("x", task.inputs)], results)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    shape = (task.outputs, task.inputs // GROUP, GROUP * bits // 8)
    scales = np.full(task.outputs * shape[1], 1e-3, np.float32)
    for i, codes in enumerate(random_codes(int(np.prod(shape)), "uint8", len(copies))):
        _add_initializer(model, f"weight{i}", TensorProto.UINT8, codes.reshape(shape))
        _add_initializer(model, f"scale{i}", TensorProto.FLOAT, scales + np.float32(1e-6 * i))
    return model


def _add_initializer(model: ModelProto, name: str, kind: int, values: np.ndarray) -> None:
    """Add a tensor in place: the constructors of onnx would copy all of them several times."""
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(values.shape)
    tensor.raw_data = values.tobytes()


def _float_tensor(name: str, features: int):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, features])
