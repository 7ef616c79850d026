"""The default schedule: results as without it and as PyTorch's, and nothing big left scalar."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor
from tvm import relax, tirx
from tvm.relax.frontend.torch import from_exported_program
from tvm.script import tirx as T

from mpq_compile.kernels.elementwise import generate
from mpq_compile.kernels.elementwise_workload import ConvertWorkload
from mpq_compile.kernels.emit import PARALLEL_ELEMENTS
from mpq_compile.kernels.plain_loops import plain_iterations, unscheduled
from mpq_compile.kernels.schedule import (
    FAILURE,
    default_schedule,
    is_scheduled,
    schedule_function,
)
from mpq_compile.kernels.tier import Tier, detect_tier, host_tiers

THREADS = 2

CASES: dict[str, Any] = {
    "softmax": (lambda x: F.softmax(x, -1), [(4, 64, 128)]),
    "softmax_odd": (lambda x: F.softmax(x, -1), [(3, 61, 197)]),
    "softmax_inner": (lambda x: F.softmax(x, 1), [(3, 37, 50)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (96,), w, b), [(65, 96), (96,), (96,)]),
    "layer_norm_odd": (lambda x, w, b: F.layer_norm(x, (61,), w, b), [(65, 61), (61,), (61,)]),
    "gelu": (F.gelu, [(63, 333)]),
    "silu": (F.silu, [(63, 333)]),
    "attention": (F.scaled_dot_product_attention, [(1, 3, 37, 32)] * 3),
    "bmm": (torch.bmm, [(4, 48, 64), (4, 64, 80)]),
    "bmm_odd": (torch.bmm, [(4, 37, 29), (4, 29, 61)]),
    "bilinear": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        [(1, 6, 17, 19)],
    ),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), [(1, 6, 17, 19)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 4, w, b), [(2, 16, 13, 11), (16,), (16,)]),
    "mean": (lambda x: x.mean((2, 3)), [(2, 48, 7, 7)]),
    "mean_channels": (lambda x: x.mean(1), [(2, 48, 9, 13)]),
    "argmax": (lambda x: x.argmax(-1), [(31, 100)]),
    "cat": (lambda x, y: torch.cat([x, y], 1), [(2, 5, 31, 9), (2, 3, 31, 9)]),
    "permute": (lambda x: x.permute(0, 2, 3, 1).contiguous(), [(2, 24, 15, 17)]),
    "pad_slice": (lambda x: F.pad(x, (1, 2, 1, 1))[:, :, :, 2:-1] + 1, [(2, 24, 15, 17)]),
    "cumsum": (lambda x: torch.cumsum(x, 1), [(16, 40)]),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1), [(1, 24, 33, 31)]),
    "total": (lambda x: x.abs().sum(), [(4003,)]),
    "bias": (lambda x, y: F.relu(x + y), [(1, 32, 57, 57), (32, 1, 1)]),
}


def legalized(function, inputs: list[Tensor]) -> tvm.IRModule:
    """Export, import and legalize a function of tensors."""

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Module(), tuple(inputs))
        module = from_exported_program(program)
    steps = relax.transform
    passes = [
        relax.backend.DispatchSortScan(),
        steps.LegalizeOps(),
        steps.AnnotateTIROpPattern(),
        steps.FuseOps(),
        steps.FuseTIR(),
        steps.DeadCodeElimination(),
    ]
    with tvm.target.Target(detect_tier().target(THREADS)):
        return tvm.ir.transform.Sequential(passes)(module)


def run(mod: tvm.IRModule, tier: Tier, inputs: list[Tensor]) -> tuple[np.ndarray, float]:
    """Build and run; return the first result and the best time in seconds."""
    library = tvm.compile(mod, target=tvm.target.Target(tier.target(THREADS)))
    machine = relax.VirtualMachine(library, tvm.cpu())
    arguments = [tvm.runtime.tensor(x.numpy()) for x in inputs]
    result = machine["main"](*arguments)[0].numpy()
    times = machine.time_evaluator("main", tvm.cpu(), number=1, repeat=5)(*arguments)
    return result, min(times.results)


def closeness(result: np.ndarray, expected: np.ndarray) -> float:
    """Return the greatest difference, relative to the greatest value."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_scheduled_equals_unscheduled(name):
    function, shapes = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    mod = legalized(function, inputs)
    plain, plain_time = run(mod, detect_tier(), inputs)
    expected = function(*inputs).numpy()
    tiers = (host_tiers()[0], host_tiers()[-1])
    for tier in tiers if name in ("softmax_odd", "bmm_odd", "gelu") else tiers[:1]:
        scheduled = default_schedule(mod, tier, THREADS)
        result, time = run(scheduled, tier, inputs)
        assert closeness(result, plain) <= 1e-6
        assert closeness(result, expected) <= 2e-6
        assert unscheduled(scheduled, PARALLEL_ELEMENTS) == []
        print(f"{name} on {tier.name}: {plain_time / time:.1f}× as fast")


def test_extremes_of_vector_math():
    x = torch.tensor([-200.0, -88.0, -20.0, -1e-5, 0.0, 1e-5, 5.0, 20.0, 88.0, 200.0, -torch.inf])
    for function in (torch.exp, torch.tanh, torch.erf, torch.sigmoid):
        inputs = [x.repeat(3)]
        mod = default_schedule(legalized(function, inputs), detect_tier(), THREADS)
        result, _ = run(mod, detect_tier(), inputs)
        np.testing.assert_allclose(result, function(*inputs).numpy(), rtol=2e-6, atol=2e-7)


def test_finished_kernels_stay_as_they_are():
    kernel = generate(ConvertWorkload(size=64, source="u8", target="fp32"), detect_tier(), 1)
    mod = tvm.IRModule({"kernel": kernel})
    assert default_schedule(mod, detect_tier(), THREADS)["kernel"].same_as(kernel)
    assert is_scheduled(kernel) and unscheduled(mod, 1) == []


def test_plain_loops_count_what_surrounds_them():
    @T.prim_func(s_tir=True)
    def mixed(
        a: T.Buffer((6400,), "float32"),  # type: ignore[valid-type]
        b: T.Buffer((6400,), "float32"),  # type: ignore[valid-type]
    ):
        for i in range(100):
            for j in T.vectorized(32):
                b[i * 64 + j] = a[i * 64 + j]
            for k in range(T.min(i, 7)):
                b[i * 64 + 32 + k] = a[i * 64]

    @T.prim_func(s_tir=True)
    def shared(
        a: T.Buffer((6400,), "float32"),  # type: ignore[valid-type]
        b: T.Buffer((6400,), "float32"),  # type: ignore[valid-type]
    ):
        for i in T.parallel(100):
            for j in range(64):
                b[i * 64 + j] = a[i * 64 + j]

    assert plain_iterations(mixed) == 700
    assert plain_iterations(shared) == 0


def test_a_function_without_a_schedule_is_reported():
    @T.prim_func(s_tir=True)
    def triangle(
        a: T.Buffer((300, 300), "float32"),  # type: ignore[valid-type]
        b: T.Buffer((300, 300), "float32"),  # type: ignore[valid-type]
    ):
        for i in range(300):
            for j in range(i + 1):
                with T.sblock("copy"):
                    row, column = T.axis.remap("SS", [i, j])
                    b[row, column] = a[row, column]

    function = schedule_function(triangle, detect_tier(), THREADS)
    assert isinstance(function, tirx.PrimFunc)
    assert "copy" in function.attrs[FAILURE]
    assert unscheduled(tvm.IRModule({"triangle": function}), 200) == ["triangle"]
