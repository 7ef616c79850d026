"""Float operators embedded in a Relax module, lowered, built, saved and loaded again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from torch import Tensor
from tvm import relax

from mpq_compile.errors import UnsupportedOpError
from mpq_compile.kernels.elementwise import generate
from mpq_compile.kernels.elementwise_workload import ConvertWorkload
from mpq_compile.kernels.emit import SCHEDULED
from mpq_compile.kernels.packing import pack_convert
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.lower.float_ops import embed, import_float_op
from mpq_compile.lower.pipeline import lower_pipeline

aten = torch.ops.aten
THREADS = 2


def tensor_type(x: Tensor) -> relax.TensorType:
    """Return the Relax type of a float32 or int64 tensor."""
    return relax.TensorType(tuple(x.shape), str(x.dtype).removeprefix("torch."))


def module_of(calls: list, inputs: list[Tensor]) -> tvm.IRModule:
    """Build main from calls (target, args) in which ``"%n"`` stands for value n.

    Values 0 … are the inputs, then the results of the calls.
    """
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", tensor_type(x)) for i, x in enumerate(inputs)]
    values, tensors = list(params), list(inputs)
    with builder.function("main", params):
        with builder.dataflow():
            for target, template in calls:
                used = [int(arg[1:]) for arg in template if isinstance(arg, str)]
                args = [tensors[int(a[1:])] if isinstance(a, str) else a for a in template]
                module = import_float_op(target, args, {}, [tensors[i] for i in used])
                values.append(embed(builder, module, "op", [values[i] for i in used]))
                tensors.append(target(*args))
            result = builder.emit_output(values[-1])
        builder.emit_func_output(result)
    return builder.finalize()


def run(mod: tvm.IRModule, inputs: list[Tensor], name: str = "main"):
    """Lower, build in compiled mode, and run."""
    tier = detect_tier()
    lowered = lower_pipeline(mod, tier, THREADS)
    target = tvm.target.Target(tier.target(THREADS))
    library = relax.build(lowered, target, exec_mode="compiled")
    machine = relax.VirtualMachine(library, tvm.cpu())
    return machine[name](*[tvm.runtime.tensor(x.numpy()) for x in inputs])


def single(target, inputs: list[Tensor], *rest, **kwargs):
    """Return a module of one operator."""
    module = import_float_op(target, [*inputs, *rest], kwargs, inputs)
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", tensor_type(x)) for i, x in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(embed(builder, module, "op", params))
        builder.emit_func_output(result)
    return builder.finalize()


def test_softmax_then_layer_norm():
    x, weight, bias = torch.randn(4, 33, 48), torch.randn(48), torch.randn(48)
    calls = [
        (aten.softmax.int, ["%0", -1]),
        (aten.layer_norm.default, ["%3", [48], "%1", "%2"]),
    ]
    result = run(module_of(calls, [x, weight, bias]), [x, weight, bias])
    expected = torch.nn.functional.layer_norm(x.softmax(-1), (48,), weight, bias)
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "target,shapes,rest",
    [
        (aten.gelu.default, [(5, 77)], []),
        (aten.tanh.default, [(5, 77)], []),
        (aten.sigmoid.default, [(5, 77)], []),
        (aten.bmm.default, [(3, 17, 20), (3, 20, 19)], []),
        (aten.mean.dim, [(2, 9, 5, 7)], [[2, 3]]),
        (aten.permute.default, [(2, 9, 5, 7)], [[0, 2, 3, 1]]),
        (aten.cumsum.default, [(6, 40)], [1]),
        (aten.upsample_nearest2d.vec, [(1, 4, 5, 6)], [None, [2.0, 2.0]]),
        (aten.mul.Tensor, [(3, 4)], [2.5]),
    ],
    ids=lambda value: str(value).split(".")[-2] if "aten" in str(value) else "",
)
def test_one_operator(target, shapes, rest):
    inputs = [torch.randn(shape) for shape in shapes]
    result = run(single(target, inputs, *rest), inputs)
    expected = target(*inputs, *rest)
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_tensors_in_lists_and_repeated_tensors():
    x, y = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    module = import_float_op(aten.cat.default, [[x, y, x], 1], {}, [x, y])
    assert len(module["main"].params) == 2
    builder = relax.BlockBuilder()
    params = [relax.Var("x", tensor_type(x)), relax.Var("y", tensor_type(y))]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(embed(builder, module, "cat", params))
        builder.emit_func_output(result)
    result = run(builder.finalize(), [x, y])
    np.testing.assert_array_equal(result.numpy(), torch.cat([x, y, x], 1).numpy())


def test_several_results():
    x = torch.randn(4, 10)
    results = run(single(aten.split.Tensor, [x], 4, 1), [x])
    for result, expected in zip(results, x.split(4, 1), strict=True):
        np.testing.assert_array_equal(result.numpy(), expected.numpy())


def test_unknown_operator_is_named():
    with pytest.raises(UnsupportedOpError, match="no float lowering for aten._linalg_svd"):
        import_float_op(aten._linalg_svd.default, [torch.eye(3)], {}, [torch.eye(3)])


def mixed_module(size: int) -> tvm.IRModule:
    """Return main: an embedded float operator between two kernels of ours."""
    tier = detect_tier()
    builder = relax.BlockBuilder()
    to_float = ConvertWorkload(size=size, source="u8", target="fp32")
    to_codes = ConvertWorkload(size=size, source="fp32", target="u8")
    x = relax.Var("x", relax.TensorType((size,), "uint8"))
    first = relax.Var("first", relax.TensorType((16,), "int32"))
    second = relax.Var("second", relax.TensorType((16,), "int32"))
    module = import_float_op(aten.tanh.default, [torch.zeros(size)], {}, [torch.zeros(size)])
    with builder.function("main", [x, first, second]):
        with builder.dataflow():
            functions = [
                builder.add_func(
                    generate(workload, tier, THREADS).with_attr("global_symbol", name), name
                )
                for name, workload in (("convert0", to_float), ("convert1", to_codes))
            ]
            wide = builder.emit(
                relax.call_tir(functions[0], [x, first], relax.TensorType((size,), "float32"))
            )
            value = embed(builder, module, "tanh", [wide])
            codes = relax.call_tir(
                functions[1], [value, second], relax.TensorType((size,), "uint8")
            )
            result = builder.emit_output(builder.emit(codes))
        builder.emit_func_output(result)
    return builder.finalize()


LOADER = """
import sys, numpy as np, tvm
from tvm import relax
library = tvm.runtime.load_module(sys.argv[1])
machine = relax.VirtualMachine(library, tvm.cpu())
arrays = np.load(sys.argv[2])
inputs = [tvm.runtime.tensor(arrays[name]) for name in ("x", "first", "second")]
np.save(sys.argv[3], machine["main"](*inputs).numpy())
"""


def test_kernels_are_left_alone_and_the_library_loads_elsewhere(tmp_path):
    size, tier = 1000, detect_tier()
    mod = mixed_module(size)
    kernels = {name.name_hint: mod[name] for name in mod.get_global_vars() if "conv" in str(name)}
    lowered = lower_pipeline(mod, tier, THREADS)
    for name, kernel in kernels.items():
        assert tvm_ffi.structural_equal(lowered[name], kernel)
    functions = lowered.functions.values()
    assert all(f.attrs[SCHEDULED] for f in functions if isinstance(f, tvm.tirx.PrimFunc))

    target = tvm.target.Target(tier.target(THREADS))
    path = tmp_path / "net.so"
    relax.build(lowered, target, exec_mode="compiled").export_library(str(path))
    x = np.arange(size).astype(np.uint8)
    records: dict[str, Any] = {
        "first": pack_convert(100, 0.02, (-np.inf, np.inf), 0),
        "second": pack_convert(0, 127.0, (-128.0, 127.0), 128),
    }
    np.savez(tmp_path / "inputs.npz", x=x, **records)
    files = [str(path), str(tmp_path / "inputs.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", LOADER, *files], check=True)
    wide = (x.astype(np.int32) - 100).astype(np.float32) * np.float32(0.02)
    expected = np.rint(np.tanh(wide) * np.float32(127.0)) + 128
    assert np.abs(np.load(tmp_path / "out.npy").astype(np.int32) - expected).max() <= 1
