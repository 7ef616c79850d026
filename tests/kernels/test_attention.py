"""Attention kernels against the oracle: codes bit for bit, floats within their rounding."""

from __future__ import annotations

from dataclasses import replace

import attention_cases as cases
import numpy as np
import pytest
import torch
import tvm

from mpq_compile.errors import LoweringError
from mpq_compile.kernels import attention
from mpq_compile.kernels.attention_plan import uses_tiles
from mpq_compile.kernels.attention_workload import MAX_KEYS, Layout, heads_first, heads_last
from mpq_compile.kernels.tier import TIERS as TIERS_BY_NAME
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.kernels.tile_instructions import EmulatedTiles

TIERS = host_tiers()
AMX = TIERS_BY_NAME["amx"]
# batch, heads, queries, keys, depth, value depth: odd ones, fewer than a vector, more than one.
SHAPES = [
    (1, 2, 16, 32, 32, 32),
    (2, 3, 9, 19, 13, 21),
    (1, 1, 1, 1, 1, 1),
    (1, 2, 3, 70, 64, 64),
    (2, 1, 21, 5, 6, 80),
    (1, 2, 13, 49, 40, 5),
    (1, 1, 16, 128, 64, 64),
    (1, 2, 18, 200, 24, 16),
]
TOLERANCE = {"bf16": 2e-2, "fp32": 3e-6}


@pytest.fixture(params=TIERS, ids=[tier.name for tier in TIERS])
def tier(request: pytest.FixtureRequest) -> Tier:
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_codes_equal_the_oracle(shape: tuple[int, ...], tier: Tier) -> None:
    work = cases.workload(*shape)
    case = cases.make_case(work, sum(shape))
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


@pytest.mark.parametrize("out", ["bf16", "fp32"])
def test_float_outputs_of_codes_equal_the_oracle(out: str, tier: Tier) -> None:
    work = cases.workload(1, 2, 7, 23, 24, 18, out=out)
    case = cases.make_case(work, 3)
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


@pytest.mark.parametrize("queries,keys", [(19, 19), (5, 40), (40, 5), (32, 64)])
def test_causal_codes_equal_the_oracle(queries: int, keys: int, tier: Tier) -> None:
    work = cases.workload(2, 2, queries, keys, 16, 16, causal=True)
    case = cases.make_case(work, keys)
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


@pytest.mark.parametrize(
    "keys,strides", [(21, (0, 0, 0)), (32, (1, 0, 0)), (32, (0, 1, 1)), (21, (1, 1, 1))]
)
def test_masked_codes_equal_the_oracle(keys: int, strides: tuple[int, ...], tier: Tier) -> None:
    batch, heads, queries = (n if used else 1 for n, used in zip((2, 3, 10), strides, strict=True))
    whole = (heads * queries * keys, queries * keys, keys)
    mask = Layout(
        size=batch * heads * queries * keys,
        strides=tuple(n * used for n, used in zip(whole, strides, strict=True)),  # type: ignore[arg-type]
    )
    work = cases.workload(2, 3, 10, keys, 20, 20, mask=mask)
    case = cases.make_case(work, keys)
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


@pytest.mark.parametrize("compute", ["int8", "bf16", "fp32"])
def test_rows_without_keys_are_zero(compute: str, tier: Tier) -> None:
    mask = Layout(size=9 * 20, strides=(0, 0, 20))
    work = cases.workload(1, 1, 9, 20, 8, 8, mask=mask, compute=compute, out="fp32")
    case = cases.make_case(work, 1)
    assert case.mask is not None
    case.mask.reshape(9, 20)[4] = -np.inf
    case = replace(case, bounds=(-np.inf, np.inf))
    output = cases.found(work, case, tier)[0, 0]
    assert not output[4].any() and output[3].any()
    lowest = np.finfo(np.float32).min
    case.mask.reshape(9, 20)[4] = lowest  # finite: PyTorch spreads the weight over all keys
    expected = cases.expected(work, case)[0, 0, 4]
    assert expected.any()
    torch.testing.assert_close(cases.found(work, case, tier)[0, 0, 4], expected, rtol=0, atol=1e-2)


def test_operands_are_read_where_they_lie(tier: Tier) -> None:
    batch, heads, rows, depth = 2, 3, 11, 16
    row = 3 * heads * depth
    joined = {  # [batch, rows, 3, heads, depth], as one linear layer produces q, k and v
        name: Layout(
            size=batch * rows * row, strides=(rows * row, depth, row), offset=index * heads * depth
        )
        for index, name in enumerate("qkv")
    }
    output = heads_last(batch, heads, rows, depth)
    work = cases.workload(batch, heads, rows, rows, depth, depth, **joined, output=output)
    case = cases.make_case(work, 5)
    case = replace(case, k=case.q, v=case.q)
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


# Batch, heads, rows, keys, columns of q and k, columns of v: what a decode step has.
STEPS = [
    (1, 4, 1, 64, 64, 64),
    (2, 3, 1, 37, 20, 13),
    (1, 2, 4, 40, 32, 48),
    (1, 1, 8, 16, 5, 3),
    (1, 2, 1, 1, 128, 128),
]


@pytest.mark.parametrize("out", ["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", STEPS, ids=lambda s: "x".join(map(str, s)))
def test_few_rows_are_near_the_oracle(
    shape: tuple[int, ...], masked: bool, out: str, tier: Tier
) -> None:
    batch, _, rows, keys, _, _ = shape
    mask = Layout(size=batch * rows * keys, strides=(rows * keys, 0, keys)) if masked else None
    work = cases.workload(*shape, compute="fp32", out=out, mask=mask)
    case = cases.make_case(work, sum(shape))
    found, expected = cases.found(work, case, tier), cases.expected(work, case)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[out])


def test_hidden_keys_of_a_step_are_not_read(tier: Tier) -> None:
    mask = Layout(size=30, strides=(0, 0, 0))
    work = cases.workload(1, 2, 1, 30, 16, 16, compute="fp32", out="fp32", mask=mask)
    case = cases.make_case(work, 0)
    assert case.mask is not None
    case.mask[:] = [0.0] * 11 + [-np.inf] * 19
    expected = cases.expected(work, case)
    for operand in (case.k, case.v):
        operand.reshape(2, 30, 16)[:, 11:] = np.nan  # memory that was never written
    found = cases.found(work, case, tier)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE["fp32"])


@pytest.mark.parametrize("compute", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=lambda s: "x".join(map(str, s)))
def test_floats_are_near_the_oracle(shape: tuple[int, ...], compute: str, tier: Tier) -> None:
    work = cases.workload(*shape, compute=compute, out=compute, causal=shape[0] == 2)
    case = cases.make_case(work, sum(shape))
    found, expected = cases.found(work, case, tier), cases.expected(work, case)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[compute])


# What tiles multiply on AMX: one tile and several, tails of rows, keys, columns and steps.
TILED = {
    "whole": {"shape": (1, 2, 16, 64, 64, 32)},
    "odd": {"shape": (2, 3, 9, 19, 13, 21)},
    "several": {"shape": (1, 1, 33, 150, 72, 80)},
    "causal": {"shape": (1, 2, 40, 70, 32, 16), "causal": True},
    "few_keys": {"shape": (1, 1, 20, 5, 8, 6), "causal": True},
    "masked": {
        "shape": (2, 1, 10, 21, 20, 20),
        "mask": Layout(size=2 * 10 * 21, strides=(10 * 21, 0, 21)),
    },
}


@pytest.mark.parametrize("compute", ["int8", "bf16"])
@pytest.mark.parametrize("name", TILED)
def test_emulated_tiles_are_near_the_oracle(name: str, compute: str) -> None:
    if TIERS[0].name not in ("amx", "vnni_bf16"):
        pytest.skip("sums begin with vector instructions: needs avx512_vnni and avx512_bf16")
    options = dict(TILED[name])
    work = cases.workload(*options.pop("shape"), compute=compute, out="fp32", **options)
    assert uses_tiles(work, AMX)
    case = cases.make_case(work, 2)
    target = TIERS_BY_NAME["vnni_bf16"].target(cases.THREADS)
    found = cases.found(work, case, AMX, target, unit=EmulatedTiles)
    tolerance = TOLERANCE.get(compute, 0.0)  # codes: none
    torch.testing.assert_close(found, cases.expected(work, case), rtol=0, atol=tolerance)


@pytest.mark.parametrize("compute,product", [("int8", "tdpbusd"), ("bf16", "tdpbf16ps")])
def test_amx_multiplies_by_tiles(compute: str, product: str) -> None:
    work = cases.workload(1, 2, 16, 32, 32, 32, compute=compute)
    program = tvm.compile(attention.generate(work, AMX, 2), target=AMX.target(2))
    assembly = program.mod.inspect_source("asm")
    for instruction in ("ldtilecfg", "tileloadd", product, "tilestored", "tilerelease"):
        assert instruction in assembly
    few = replace(work, queries=4, q=heads_first(1, 2, 4, 32), output=heads_first(1, 2, 4, 32))
    assert not uses_tiles(few, AMX)


def test_many_keys_share_the_weight(tier: Tier) -> None:
    work = cases.workload(1, 1, 9, 3001, 8, 8)
    case = cases.make_case(work, 1)
    assert torch.equal(cases.found(work, case, tier), cases.expected(work, case))


def test_the_oracle_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 32, generator=generator) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    scale, zero_point = 8 / 255, 128
    codes = [(x / scale).round().add(zero_point).clamp(0, 255).to(torch.uint8) for x in (q, k, v)]
    found = cases.oracle(
        *codes,
        None,
        False,
        scale**2 / 32**0.5,
        (zero_point, zero_point, 0),
        scale,
        (-float("inf"), float("inf")),
        "fp32",
    )
    signal, noise = exact.square().sum(), (found - exact).square().sum()
    assert 10 * torch.log10(signal / noise) > 35


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(LoweringError, match="overflow"):
        cases.workload(1, 1, 1, MAX_KEYS + 1, 8, 8)


def test_key_names_what_differs() -> None:
    works = [
        cases.workload(1, 2, 8, 8, 8, 8, **options)
        for options in (
            {},
            {"causal": True},
            {"out": "fp32"},
            {"compute": "bf16"},
            {"q": heads_last(1, 2, 8, 8)},
            {"mask": heads_first(1, 2, 8, 8)},
        )
    ]
    assert len({work.key for work in works}) == len(works)
