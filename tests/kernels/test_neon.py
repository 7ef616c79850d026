"""The NEON tiers: their numbers on any CPU by plain products, their instructions by
cross-compilation. ``test_aarch64`` runs them where an emulator is installed."""

from __future__ import annotations

from dataclasses import replace

import attention_cases
import matmul_cases as cases
import pytest
import torch
import tvm
from tvm.script import tirx as T

from mpq_compile.kernels import attention, code_step, matmul, microkernel
from mpq_compile.kernels.tier import TIERS
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload

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
# Instructions of the tier neon_i8mm.
MATRIX = {"conv": "usmmla", "linear": "usmmla", "grouped_scales": "usdot"}


def plain_dot(_, acc, x, w):
    """Σ of four products a lane, from plain vector operations."""
    a, b = (T.cast(operand, "int32x16") for operand in (x, w))
    products = a * b
    for element in range(4):
        acc = acc + T.Shuffle([products], [4 * lane + element for lane in range(4)])
    return acc


def plain_mmla(_, acc, x, w):
    """2 × 8 by 8 × 2 products, from plain vector operations."""
    a, b = (T.cast(operand, "int32x16") for operand in (x, w))
    for element in range(8):
        left = T.Shuffle([a], [element, element, 8 + element, 8 + element])
        right = T.Shuffle([b], [element, 8 + element] * 2)
        acc = acc + left * right
    return acc


@pytest.mark.parametrize("tier", ["neon", "neon_i8mm"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_plain_products_equal_the_oracle(name, tier, monkeypatch):
    for step in (microkernel.Sdot, microkernel.Usdot, code_step.SdotCodes):
        monkeypatch.setattr(step, "add", plain_dot)
    monkeypatch.setattr(microkernel.Usmmla, "add", plain_mmla)
    cases.assert_matches(WORKLOADS[name], TIERS[tier], target=cases.PLAIN_TARGET)


@pytest.mark.parametrize("tier", ["neon", "neon_i8mm"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_instructions_are_in_the_assembly(name, tier):
    target = tvm.target.Target(TIERS[tier].target(cases.THREADS))
    function = matmul.generate(WORKLOADS[name], TIERS[tier], cases.THREADS)
    assembly = tvm.compile(function, target=target).mod.inspect_source("asm")
    assert f"\t{MATRIX.get(name, 'sdot') if tier == 'neon_i8mm' else 'sdot'}\t" in assembly


def test_pairs_of_bf16_pixels_multiply_as_matrices():
    tier = TIERS["neon_i8mm_bf16"]
    function = matmul.generate(replace(CONV, compute="bf16", out="bf16"), tier, cases.THREADS)
    target = tvm.target.Target(tier.target(cases.THREADS))
    assert "\tbfmmla\t" in tvm.compile(function, target=target).mod.inspect_source("asm")


@pytest.mark.parametrize("tier", ["neon", "neon_i8mm"])
def test_attention_equals_the_oracle(tier, monkeypatch):
    for step in (microkernel.Sdot, microkernel.Usdot):
        monkeypatch.setattr(step, "add", plain_dot)
    work = attention_cases.workload(1, 2, 5, 11, 10, 7)
    case = attention_cases.make_case(work, 4)
    found = attention_cases.found(work, case, TIERS[tier], target=cases.PLAIN_TARGET)
    assert torch.equal(found, attention_cases.expected(work, case))


@pytest.mark.parametrize(("tier", "instruction"), [("neon", "sdot"), ("neon_i8mm", "usdot")])
def test_assembly_of_attention(tier, instruction):
    work = attention_cases.workload(1, 2, 8, 32, 16, 16)
    target = tvm.target.Target(TIERS[tier].target(cases.THREADS))
    program = tvm.compile(attention.generate(work, TIERS[tier], cases.THREADS), target=target)
    assert f"\t{instruction}\t" in program.mod.inspect_source("asm")
