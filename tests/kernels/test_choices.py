"""Every schedule that a kernel offers equals the oracle; a choice and its text are one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import matmul_cases as cases
import numpy as np
import pytest
import tvm_ffi
from test_random_sweep import random_workload
from test_tiles import AMX, emulated
from tiers import DISTINCT_TIERS, distinct_tiers

from mpq_compile.errors import LoweringError
from mpq_compile.kernels import matmul, tiles
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.tier import TIERS
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload

SEEDS = range(6)
IMAGE = ConvWorkload(
    batch=1, height=13, width=19, in_channels=16, out_channels=70, kernel=(3, 3),
    padding=(1, 1, 1, 1),
)  # fmt: skip
DEPTHWISE = ConvWorkload(
    batch=1, height=29, width=37, in_channels=40, out_channels=40, groups=40, kernel=(3, 3),
    padding=(1, 1, 1, 1),
)  # fmt: skip
ROWS = LinearWorkload(rows=61, in_features=70, out_features=130, residual="u8")
# Larger than what a core caches, so that prefetching is free to choose.
FEW_ROWS = LinearWorkload(rows=1, in_features=1024, out_features=2100, residual="fp32")
BORDERED = replace(IMAGE, bordered_input=True, border=(1, 2, 0, 1))
WORKLOADS = {
    "image": IMAGE,
    "bordered": BORDERED,
    "depthwise": DEPTHWISE,
    "rows": ROWS,
    "few_rows": FEW_ROWS,
}


def alternatives(workload: Workload, tier: object) -> list[Choice]:
    """Return all offered schedules but the cost model's, which other tests run."""
    return matmul.choices(workload.alone, tier, cases.THREADS)[1:]  # type: ignore[arg-type]


@DISTINCT_TIERS
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_choice_equals_the_oracle(tier, name):
    workload = WORKLOADS[name]
    offered = alternatives(workload, tier)
    assert offered
    for choice in offered:
        generate = partial(matmul.generate, choice=choice)
        cases.assert_matches(workload, tier, seed=3, generate=generate)


@pytest.mark.parametrize("name", WORKLOADS)
def test_choices_are_different_kernels(name):
    tier, workload = distinct_tiers()[0], WORKLOADS[name]
    offered = matmul.choices(workload, tier, cases.THREADS)
    made = [matmul.generate(workload, tier, cases.THREADS, choice) for choice in offered]
    assert len({tvm_ffi.structural_hash(function) for function in made}) == len(offered)
    first = matmul.generate(workload, tier, cases.THREADS)
    assert tvm_ffi.structural_equal(first, made[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_of_random_workloads_equal_the_oracle(seed):
    tiers = distinct_tiers()
    tier = tiers[seed % len(tiers)]
    workload = random_workload(np.random.default_rng(1000 + seed))
    for choice in alternatives(workload, tier):
        generate = partial(matmul.generate, choice=choice)
        cases.assert_matches(workload, tier, seed=seed, generate=generate)


@pytest.mark.parametrize("workload", [IMAGE, ROWS], ids=["image", "rows"])
def test_every_choice_of_emulated_tiles_equals_the_oracle(workload):
    offered = tiles.choices(workload, AMX, cases.THREADS)[1:]
    assert offered
    for choice in offered:
        generate = partial(emulated, choice=choice)
        cases.assert_matches(workload, AMX, generate=generate, target=cases.PLAIN_TARGET)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_what_is_offered(tier, threads):
    """Few, distinct, of as many tasks as the model's; each has a text that means it alone."""
    for seed in range(40):
        workload = random_workload(np.random.default_rng(seed))
        offered = matmul.choices(workload, tier, threads)
        assert 1 <= len(set(offered)) == len(offered) <= 8
        assert [Choice.parse(str(choice)) for choice in offered] == offered
        if len(offered) > 1:
            same = [c.split.tasks for c in offered if c.block == offered[0].block]
            assert min(same) == same[0]


def test_text_of_a_choice():
    text = "r1c32v2f14/s2x3rp4096"
    choice = Choice.parse(text)
    assert (choice.block.columns, choice.flat_rows, choice.prefetch_bytes) == (32, 14, 4096)
    assert (choice.split.channels, choice.split.rows, choice.split.rows_outer) == (2, 3, True)
    assert str(choice) == text


@pytest.mark.parametrize("text", ["", "r1c9v3", "r1c9v3/s2x1i", "r1c9v3/s2x1c "])
def test_what_is_no_choice(text):
    with pytest.raises(LoweringError, match="schedule"):
        Choice.parse(text)
