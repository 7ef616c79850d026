"""ONNX Runtime's MatMulNBits on rotating weights."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

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
    run = load_onnx(model.SerializeToString(), task.threads)
    return Prepared(
        run=lambda x: run(x.numpy()),
        example=task.example,
        repeats=len(model.graph.node),
    )


def _model(task: GemvTask, bits: int, accuracy_level: int) -> ModelProto:
    blocks = task.inputs // GROUP
    shape = (task.outputs, blocks, GROUP * bits // 8)
    initializers, nodes, results = [], [], []
    for i, codes in enumerate(random_codes(int(np.prod(shape)), "uint8", task.copies(bits))):
        scales = np.full(task.outputs * blocks, 1e-3, np.float32)
        initializers.append(numpy_helper.from_array(codes.reshape(shape), f"weight{i}"))
        initializers.append(numpy_helper.from_array(scales, f"scale{i}"))
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", f"weight{i}", f"scale{i}"], [f"out{i}"],
                domain="com.microsoft", K=task.inputs, N=task.outputs, bits=bits,
                block_size=GROUP, accuracy_level=accuracy_level,
            )
        )  # fmt: skip
        results.append(_float_tensor(f"out{i}", task.outputs))
    graph = helper.make_graph(
        nodes, "gemv", [_float_tensor("x", task.inputs)], results, initializers
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _float_tensor(name: str, features: int):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, features])
