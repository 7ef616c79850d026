"""The NEON tier: its numbers on any CPU by a plain sdot, its instructions by cross-compilation."""

from __future__ import annotations

import attention_cases
import matmul_cases as cases
import pytest
import torch
import tvm
from tvm.script import tirx as T

from mpq_compile.kernels import attention, code_step, matmul, microkernel
from mpq_compile.kernels.tier import TIERS
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload

NEON = TIERS["neon"]
CONV = ConvWorkload(
    batch=1, height=5, width=6, in_channels=9, out_channels=14, kernel=(3, 3), padding=(1, 1, 1, 1)
)
WORKLOADS: dict[str, Workload] = {
    "conv": CONV,
    "linear": LinearWorkload(rows=6, in_features=30, out_features=13),
    "grouped_scales": LinearWorkload(rows=7, in_features=48, out_features=10, group_size=12),
    "few_rows_w8": LinearWorkload(rows=1, in_features=70, out_features=21),
    "few_rows_w4": LinearWorkload(rows=2, in_features=70, out_features=21, weight_bits=4),
    "few_rows_w2": LinearWorkload(rows=3, in_features=70, out_features=21, weight_bits=2),
}


def plain_sdot(acc, x, w):
    """Σ of four products a lane, from plain vector operations."""
    a, b = (T.cast(operand, "int32x16") for operand in (x, w))
    products = a * b
    for element in range(4):
        lanes = T.Shuffle([products], [4 * lane + element for lane in range(4)])
        acc = acc + lanes
    return acc


@pytest.mark.parametrize("name", WORKLOADS)
def test_centred_inputs_equal_the_oracle(name, monkeypatch):
    monkeypatch.setattr(microkernel.Sdot, "add", lambda self, acc, x, w: plain_sdot(acc, x, w))
    monkeypatch.setattr(code_step.SdotCodes, "add", lambda self, acc, c, x: plain_sdot(acc, c, x))
    cases.assert_matches(WORKLOADS[name], NEON, target=cases.PLAIN_TARGET)


@pytest.mark.parametrize("name", WORKLOADS)
def test_assembly_uses_sdot(name):
    triple = {"mtriple": "aarch64-linux-gnu"}
    target = tvm.target.Target({**NEON.target(cases.THREADS), **triple})
    program = tvm.compile(matmul.generate(WORKLOADS[name], NEON, cases.THREADS), target=target)
    assert "sdot" in program.mod.inspect_source("asm")


def test_attention_of_centred_codes_equals_the_oracle(monkeypatch):
    monkeypatch.setattr(microkernel.Sdot, "add", lambda self, acc, x, w: plain_sdot(acc, x, w))
    work = attention_cases.workload(1, 2, 5, 11, 10, 7)
    case = attention_cases.make_case(work, 4)
    found = attention_cases.found(work, case, NEON, target=cases.PLAIN_TARGET)
    assert torch.equal(found, attention_cases.expected(work, case))


def test_assembly_of_attention_uses_sdot():
    work = attention_cases.workload(1, 2, 8, 32, 16, 16)
    triple = {"mtriple": "aarch64-linux-gnu"}
    target = tvm.target.Target({**NEON.target(cases.THREADS), **triple})
    program = tvm.compile(attention.generate(work, NEON, cases.THREADS), target=target)
    assert "sdot" in program.mod.inspect_source("asm")
