"""Estimates of kernels that were never measured, on tables whose law is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mpq_compile.cost.estimate import ESTIMATORS, BoostedTrees, Estimates, Roofline, Table
from mpq_compile.cost.kernel_features import Features, features_of
from mpq_compile.cost.measurement import Measurement, MeasurementKey, Row, utc_now
from mpq_compile.errors import ProfileError
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload

CONV = ConvWorkload(
    batch=2, height=14, width=12, in_channels=32, out_channels=48, kernel=(3, 3),
    stride=(2, 2), padding=(1, 1, 1, 1),
)  # fmt: skip


def features(key: str) -> Features:
    found = features_of(key)
    assert found is not None
    return found


def test_features_of_a_convolution() -> None:
    found = features(CONV.key)
    assert (found.macs, found.numbers["pixels"]) == (CONV.macs, 2 * 7 * 6)
    weights = 48 * 9 * 32
    assert found.bytes == CONV.input_size + weights + CONV.output_size
    assert found.kind == "conv int8"


@pytest.mark.parametrize(
    "workload",
    [
        CONV,
        ConvWorkload(
            batch=1, height=5, width=9, in_channels=8, out_channels=8, kernel=(5, 3), groups=8,
            padding=(-1, 1, 2, 0), dilation=(1, 2), compute="bf16", out="fp32", residual="bf16",
        ),
        ConvWorkload(
            batch=1, height=5, width=9, in_channels=8, out_channels=4, kernel=(2, 2),
            input_dilation=(2, 2), padding=(1, 1, 1, 1), compute="fp32", out="u8",
            bordered_input=True, border=(1, 1, 1, 1),
        ),
        LinearWorkload(rows=1, in_features=64, out_features=10, weight_bits=4, group_size=32),
        LinearWorkload(rows=9, in_features=64, out_features=10, compute="fp32", out="fp32"),
        LinearWorkload(rows=9, in_features=64, out_features=10, row_scales=True, residual="u8"),
        LinearWorkload(rows=2, in_features=64, out_features=10, compute="weight_only"),
    ],
    ids=lambda workload: workload.key,
)  # fmt: skip
def test_every_matrix_multiply_is_read_back(workload: ConvWorkload | LinearWorkload) -> None:
    """With and without the schedule that a tuned kernel has in its stored shape."""
    for shape in (workload.key, f"{workload.key}/rows1x2-c3"):
        assert features(shape).macs == workload.macs
    same = features(workload.key)
    assert features(workload.key.replace("_u8", "_fp32")).shape == same.shape


def test_features_of_a_kernel_for_few_bits() -> None:
    wide = replace(CONV, border=(1, 1, 1, 1))
    narrow = features(replace(wide, weight_bits=4).key)
    assert (narrow.kind, narrow.numbers["bits"]) == ("narrow conv int8", 4)
    assert (narrow.shape, narrow.bytes) == (features(wide.key).shape, features(wide.key).bytes)
    many = LinearWorkload(rows=9, in_features=64, out_features=32, weight_bits=4)
    assert features(many.key).kind == "narrow linear int8"
    assert features(many.key).numbers["weights"] == 64 * 32


def test_features_of_what_multiplies_nothing() -> None:
    convert = features(ConvertWorkload(size=100, source="u8", target="fp32").key)
    assert (convert.macs, convert.bytes) == (0, 500)
    rows = features(QuantizeRowsWorkload(rows=4, features=8).key)
    assert rows.bytes == 4 * 8 * 5
    assert features_of("softmax/3x4") is None


def us_of(f: Features) -> float:
    """The law of the drawn tables: launch, rate by format, bandwidth."""
    rate = {"int8": 4e5, "bf16": 2e5, "fp32": 1e5}[f.kind.split()[-1]]
    return 2.0 + f.macs / rate + f.bytes / 1e4


def row(key: str, us: float, kernels: str = "k") -> Row:
    operator = "linear" if key.startswith("linear") else "conv2d"
    name = MeasurementKey(
        device="d", toolchain="t", kernels=kernels, operator=operator, shape=key, candidate="c"
    )
    value = Measurement(
        count=1, median_us=us, mean_us=us, variance=0.0, min_us=us, clock_mhz=None, time=utc_now()
    )
    return name, value


def rows(curved: bool = False) -> list[Row]:
    """A table of convolutions: the law above, or one that no roofline can follow."""
    sizes = itertools.product((7, 14, 28), (16, 48, 96), (16, 64, 160), ("int8", "bf16", "fp32"))
    result = []
    for pixels, inputs, outputs, compute in sizes:
        key = ConvWorkload(
            batch=1, height=pixels, width=pixels, in_channels=inputs, out_channels=outputs,
            kernel=(1, 1), compute=compute,
        ).key  # fmt: skip
        found = features(key)
        wave = 1.0 + 0.8 * (outputs == 160) + 0.5 * (pixels == 7)
        result.append(row(key, us_of(found) * (wave if curved else 1.0)))
    return result


def test_roofline_finds_the_law() -> None:
    table = Table.of(rows(), "d", "t", "k")
    assert len(table.us) == 81
    assert np.max(table.left_out_errors(Roofline)) < 1e-6


def test_the_better_estimator_is_taken_and_applied() -> None:
    straight = Estimates.learned(Table.of(rows(), "d", "t", "k"))
    curved = Estimates.learned(Table.of(rows(curved=True), "d", "t", "k"))
    assert (straight.name, curved.name) == ("roofline", "boosted trees")
    assert straight.error < curved.error < 0.15
    wanted = ConvWorkload(
        batch=1, height=20, width=20, in_channels=64, out_channels=64, kernel=(1, 1)
    ).key
    assert straight.us([wanted])[wanted] == pytest.approx(us_of(features(wanted)), rel=1e-6)


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_kinds_that_were_never_measured_get_a_time(make: type[Roofline | BoostedTrees]) -> None:
    table = Table.of(rows(), "d", "t", "k")
    learner = make()
    learner.fit(table.features, table.us)
    linear = features(LinearWorkload(rows=64, in_features=256, out_features=256).key)
    assert 0 < learner.predict([linear])[0] < 1e4


def test_only_current_rows_of_the_device_are_learned_from() -> None:
    current, stale = rows(), [row(CONV.key, 1e6, kernels="older")]
    tuned = [row(f"{current[0][0].shape}/other", current[0][1].median_us / 2)]
    table = Table.of([*current, *stale, *tuned], "d", "t", "k")
    assert len(table.us) == 81
    assert table.us.min() == pytest.approx(current[0][1].median_us / 2)
    assert len(Table.of(current, "elsewhere", "t", "k").us) == 0


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(ProfileError, match="too few") as caught:
        Estimates.learned(Table.of(rows()[:9], "d", "t", "k"))
    assert "--sweep" in str(caught.value.remedy)
