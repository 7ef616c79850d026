"""Linear and convolution kernels against the oracle, on every tier this machine executes."""

from __future__ import annotations

from dataclasses import replace

import matmul_cases as cases
import numpy as np
import pytest
from tiers import DISTINCT_TIERS, EVERY_TIER, distinct_tiers

from mpq_compile.cost.exactness import oracle
from mpq_compile.errors import LoweringError
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.runtime.kernel_case import make_case

FORMATS = ("u8", "bf16", "fp32")
CONVS = {
    "same": dict(height=8, width=8, in_channels=16, out_channels=16, padding=(1, 1, 1, 1)),
    "rgb_stem": dict(height=9, width=11, in_channels=3, out_channels=24, stride=(2, 2)),
    "one_channel": dict(height=7, width=6, in_channels=1, out_channels=5, padding=(2, 2, 2, 2)),
    "odd": dict(height=6, width=5, in_channels=7, out_channels=37, padding=(1, 0, 2, 1)),
    "batch": dict(batch=3, height=4, width=4, in_channels=8, out_channels=48, padding=(1, 1, 1, 1)),
    "dilated": dict(
        height=9, width=8, in_channels=6, out_channels=20, dilation=(2, 3), padding=(2, 3, 2, 3)
    ),
    "grouped": dict(
        height=5, width=6, in_channels=24, out_channels=36, groups=3, padding=(1, 1, 1, 1)
    ),
    "narrow_groups": dict(
        height=5, width=6, in_channels=20, out_channels=12, groups=4, padding=(1, 1, 1, 1)
    ),
    "pointwise": dict(batch=2, height=5, width=5, in_channels=32, out_channels=24, kernel=(1, 1)),
    "pointwise_strided": dict(
        height=6, width=7, in_channels=16, out_channels=16, kernel=(1, 1), stride=(2, 2)
    ),
    "transposed": dict(
        height=4, width=5, in_channels=8, out_channels=16, input_dilation=(2, 3),
        padding=(1, 2, 2, 1),
    ),
    "cropped": dict(
        height=6, width=6, in_channels=4, out_channels=8, input_dilation=(2, 2),
        padding=(-1, -2, 1, -1), kernel=(2, 2),
    ),
    "row_kernel": dict(
        height=5, width=9, in_channels=5, out_channels=17, kernel=(1, 5), padding=(0, 2, 0, 2)
    ),
    "depthwise": dict(
        height=9, width=10, in_channels=40, out_channels=40, groups=40, padding=(1, 1, 1, 1)
    ),
    "depthwise_narrow": dict(
        height=7, width=5, in_channels=6, out_channels=6, groups=6, stride=(2, 2),
        padding=(1, 0, 1, 1),
    ),
    "depthwise_unpadded": dict(
        batch=2, height=7, width=9, in_channels=21, out_channels=21, groups=21, kernel=(5, 3),
        dilation=(1, 2),
    ),
    "depthwise_multiplier": dict(
        height=5, width=5, in_channels=6, out_channels=12, groups=6, padding=(1, 1, 1, 1)
    ),
}  # fmt: skip


def conv(name: str, **formats: object) -> ConvWorkload:
    """Return a small convolution by name."""
    return ConvWorkload(**{"batch": 1, "kernel": (3, 3), **CONVS[name], **formats})


@DISTINCT_TIERS
@pytest.mark.parametrize("name", CONVS)
def test_integer_convolution_equals_the_oracle(tier, name):
    cases.assert_matches(conv(name), tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("name", CONVS)
def test_convolution_with_weights_of_few_bits(tier, name):
    cases.assert_matches(conv(name, weight_bits=4, residual="fp32"), tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rows,inputs,outputs", [(5, 37, 33), (19, 130, 48), (8, 33, 5)])
def test_many_rows_with_weights_of_few_bits(tier, dynamic, rows, inputs, outputs):
    workload = LinearWorkload(
        rows=rows, in_features=inputs, out_features=outputs, weight_bits=4, row_scales=dynamic
    )
    cases.assert_matches(workload, tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("weight", [-8, 7])
def test_the_largest_sums_of_few_bits_do_not_overflow(tier, steps, weight):
    """AVX2 sums them in 16 bits, which nine steps would leave."""
    workload = LinearWorkload(
        rows=6, in_features=4 * steps, out_features=9, weight_bits=4, out="fp32"
    )
    case = make_case(workload, seed=0)
    case = replace(case, x=np.full_like(case.x, 255), weight=np.full_like(case.weight, weight))
    got = cases.computed(workload, tier, case)
    np.testing.assert_array_equal(got, oracle(workload, case))


@pytest.mark.parametrize("residual", FORMATS)
@pytest.mark.parametrize("out", FORMATS)
def test_every_pair_of_residual_and_output_formats(out, residual):
    """Each pair once; each tier meets each format, as residual and as output."""
    tiers = distinct_tiers()
    turn = FORMATS.index(out) + FORMATS.index(residual)
    tier = tiers[turn % len(tiers)]
    cases.assert_matches(conv("pointwise", residual=residual, out=out), tier, seed=1)


@DISTINCT_TIERS
@pytest.mark.parametrize("residual,out", [("u8", "fp32"), ("bf16", "u8"), ("fp32", "bf16")])
def test_formats_of_groups_narrower_than_a_vector(tier, residual, out):
    cases.assert_matches(conv("narrow_groups", residual=residual, out=out), tier, seed=1)


@DISTINCT_TIERS
@pytest.mark.parametrize("name", ["rgb_stem", "odd", "grouped", "transposed", "depthwise"])
def test_fp32_convolution_is_close(tier, name):
    cases.assert_matches(conv(name, compute="fp32", out="fp32"), tier)


@EVERY_TIER
@pytest.mark.parametrize("name", ["odd", "grouped", "depthwise"])
def test_bf16_convolution_is_close(tier, name):
    cases.assert_matches(conv(name, compute="bf16", out="fp32"), tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("compute", ["int8", "fp32"])
@pytest.mark.parametrize("rows,inputs,outputs", [(1, 64, 10), (5, 37, 33), (19, 130, 48)])
def test_linear(tier, compute, rows, inputs, outputs):
    workload = LinearWorkload(
        rows=rows, in_features=inputs, out_features=outputs, compute=compute, out="fp32"
    )
    cases.assert_matches(workload, tier)


@EVERY_TIER
@pytest.mark.parametrize("compute", ["bf16", "weight_only"])
@pytest.mark.parametrize("rows,inputs,outputs", [(1, 37, 33), (19, 130, 48)])
def test_linear_over_bf16(tier, compute, rows, inputs, outputs):
    workload = LinearWorkload(
        rows=rows, in_features=inputs, out_features=outputs, compute=compute, out="fp32"
    )
    cases.assert_matches(workload, tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("rows,group", [(1, 32), (2, 10), (7, 32)])
def test_linear_with_group_scales(tier, rows, group):
    workload = LinearWorkload(
        rows=rows, in_features=4 * group, out_features=40, group_size=group, residual="u8"
    )
    cases.assert_matches(workload, tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("rows,inputs,outputs", [(1, 64, 10), (2, 75, 150), (4, 130, 33)])
def test_few_rows_read_packed_weights(tier, bits, rows, inputs, outputs):
    workload = LinearWorkload(
        rows=rows, in_features=inputs, out_features=outputs, weight_bits=bits, residual="fp32"
    )
    cases.assert_matches(workload, tier)


@EVERY_TIER
def test_few_rows_with_and_without_prefetch(tier):
    cases.assert_matches(
        LinearWorkload(rows=3, in_features=600, out_features=200, weight_bits=4), tier
    )


@DISTINCT_TIERS
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("rows,group,outputs", [(1, 64, 300), (3, 12, 70), (2, 20, 5)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_few_rows_with_group_scales(tier, bits, rows, group, outputs, dynamic):
    workload = LinearWorkload(
        rows=rows,
        in_features=3 * group,
        out_features=outputs,
        weight_bits=bits,
        group_size=group,
        row_scales=dynamic,
    )
    cases.assert_matches(workload, tier)


@DISTINCT_TIERS
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_group_sums_with_zero_points_at_the_ends(tier, zero_point):
    workload = LinearWorkload(
        rows=1, in_features=96, out_features=150, weight_bits=4, group_size=32, out="fp32"
    )
    drawn = make_case(workload, 3)
    case = replace(drawn, zero_points=(zero_point, *drawn.zero_points[1:]))
    np.testing.assert_array_equal(cases.computed(workload, tier, case), oracle(workload, case))


@EVERY_TIER
@pytest.mark.parametrize("bits,rows,group", [(8, 1, 32), (4, 1, 64), (2, 3, 12), (8, 7, 32)])
def test_weight_only_with_group_scales(tier, bits, rows, group):
    workload = LinearWorkload(
        rows=rows,
        in_features=3 * group,
        out_features=300,
        weight_bits=bits,
        group_size=group,
        compute="weight_only",
        out="fp32",
    )
    cases.assert_matches(workload, tier)


@EVERY_TIER
@pytest.mark.parametrize(
    "bits,rows,inputs,outputs", [(8, 2, 75, 150), (4, 1, 64, 10), (2, 2, 75, 150)]
)
def test_few_rows_weight_only(tier, bits, rows, inputs, outputs):
    workload = LinearWorkload(
        rows=rows,
        in_features=inputs,
        out_features=outputs,
        weight_bits=bits,
        compute="weight_only",
        out="fp32",
    )
    cases.assert_matches(workload, tier)


@DISTINCT_TIERS
@pytest.mark.parametrize(
    "rows,inputs,outputs,options",
    [
        (1, 70, 37, {"weight_bits": 4, "out": "fp32"}),
        (3, 96, 40, {"weight_bits": 8, "group_size": 32, "residual": "fp32"}),
        (9, 50, 10, {"residual": "u8"}),
        (33, 128, 70, {"group_size": 64, "out": "bf16"}),
    ],
)
def test_linear_with_row_scales(tier, rows, inputs, outputs, options):
    workload = LinearWorkload(
        rows=rows, in_features=inputs, out_features=outputs, row_scales=True, **options
    )
    cases.assert_matches(workload, tier)


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 5, "weight_bits": 2},
        {"rows": 5, "weight_bits": 4, "group_size": 16},
        {"rows": 1, "weight_bits": 4, "compute": "bf16"},
        {"rows": 1, "group_size": 24},
        {"rows": 1, "group_size": 32, "compute": "bf16"},
        {"rows": 1, "row_scales": True, "compute": "fp32"},
    ],
)
def test_workloads_without_a_kernel_are_refused(options):
    with pytest.raises(LoweringError, match="expected"):
        LinearWorkload(in_features=64, out_features=8, **options)
