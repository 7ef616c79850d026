"""Cutting kernels into phases keeps the order of what they compute."""

from __future__ import annotations

import pytest
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.target import Target

from mpq_compile.kernels.emit import store
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.lower.phases import cut
from mpq_compile.lower.program import NotAProgram


def written_then_bound(*, read_input: bool, parallel: bool):
    """Return a function that stores, then binds an element of its input or of its output."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("X", T.buffer((4,), "float32"))
        out = T.arg("O", T.buffer((4,), "float32"))
        if parallel:
            with T.parallel(2) as lane:
                store(out, lane, 1, x[lane])
        else:
            store(out, 0, 1, x[0])
        value = T.bind((x if read_input else out)[0])
        store(out, 2, 1, value)
    return builder.get()


@pytest.mark.parametrize("read_input", [False, True])
def test_a_serial_function_is_one_phase(read_input: bool) -> None:
    target = Target(detect_tier().target(2))
    assert (
        len(cut(written_then_bound(read_input=read_input, parallel=False), target, 2).phases) == 1
    )


def test_a_variable_read_from_finished_work_is_refused() -> None:
    target = Target(detect_tier().target(2))
    kernel = cut(written_then_bound(read_input=True, parallel=True), target, 2)
    assert len(kernel.phases) == 2
    with pytest.raises(NotAProgram, match="read after work"):
        cut(written_then_bound(read_input=False, parallel=True), target, 2)
