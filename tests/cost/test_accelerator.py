"""A target that a class times: found by its name, asked once for each layer, blamed by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_nets import CASES
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.cost.accelerator_class import load_accelerator
from mpq_compile.cost.accelerator_workload import accelerator_workload
from mpq_compile.cost.profile import load_profile
from mpq_compile.cost.store import Store
from mpq_compile.passes.network import Network, prepare
from mpq_compile.types import Candidate, Site

PROFILE = """\
schema_version: 1
name: mine
description: A device.
kind: accelerator
reached: class
device: mine.py:Mine
overhead_us: 3.0
operators:
  conv2d: &all
    - candidates: [w8a8, w4a8]
  depthwise_conv2d: *all
  conv_transpose2d: *all
  linear: *all
defaults: [w8a8, w4a8]
energy: {pj_per_mac_bit: 1.0, pj_per_byte: 0.0}
"""
CLASS = """\
from pathlib import Path

LOG = Path(__file__).with_name("log")


class Mine:
    version = "1"

    def __init__(self):
        self.note("opened")

    def measure(self, workload):
        self.note(f"{workload.operator} {workload.candidate}")
        return workload.macs * workload.weight_bits * 1e-9

    def close(self):
        self.note("closed")

    def note(self, text):
        with LOG.open("a") as log:
            log.write(text + "\\n")
"""


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))
    return tmp_path / "db.sqlite"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A profile with its class beside it."""
    (tmp_path / "mine.py").write_text(CLASS)
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILE)
    return path


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),  # the same work as the one before
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def plan(target: Path, **options: Any) -> mpq.Plan:
    return mpq.plan(model(), X[:1], [X], target=str(target), **options)


def log_of(target: Path) -> list[str]:
    return target.with_name("log").read_text().splitlines()


# Plans


def test_latency_is_the_sum_of_the_layers_and_the_overhead(target: Path) -> None:
    found = plan(target)
    macs = 36 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 32
    assert set(found.assignment.values()) == {"w8a8"}
    assert found.predicted.latency_ms == pytest.approx((macs * 8e-3 + 3.0) / 1e3)
    assert found.predicted.energy_mj == pytest.approx(macs * 64 * 1e-9)
    assert {row["latency_source"] for row in found.table} == {"measured"}


def test_every_layer_is_asked_for_once_and_the_instance_closed(target: Path) -> None:
    plan(target)
    log = log_of(target)
    assert (log[0], log[-1]) == ("opened", "closed")
    # Two equal times end the repeats; sites of one shape share them.
    assert len(log) == 2 + 2 * 2 * 3
    assert log.count("conv2d w8a8") == 4 and log.count("linear w4a8") == 2


def test_a_second_plan_measures_nothing(target: Path) -> None:
    first = plan(target)
    before = log_of(target)
    budget = mpq.Budget(latency_ms=0.7 * first.predicted.latency_ms)
    second = plan(target, budget=budget)
    assert log_of(target) == before
    assert set(second.assignment.values()) == {"w8a8", "w4a8"}
    assert second.predicted.latency_ms <= budget.latency_ms * (1 + 1e-9)


@pytest.mark.parametrize("change", ["version", "code", "name"])
def test_another_class_or_profile_is_measured_anew(target: Path, change: str) -> None:
    old, new = plan(target).predicted.latency_ms, None
    source, count = target.with_name("mine.py"), len(log_of(target))
    if change == "version":
        source.write_text(CLASS.replace('version = "1"', 'version = "2"'))
    elif change == "code":
        source.write_text(CLASS.replace("1e-9", "2e-9"))
    else:
        target.write_text(PROFILE.replace("name: mine", "name: other"))
    new = plan(target).predicted.latency_ms
    assert len(log_of(target)) == 2 * count
    assert (new > old) == (change == "code")


def test_profiling_asks_the_class_and_planning_then_does_not(target: Path) -> None:
    first = mpq.profile(model(), X[:1], [X], target=str(target))
    assert (first.needed, first.new, first.complete) == (6, 6, True)
    before = log_of(target)
    second = mpq.profile(model(), X[:1], [X], target=str(target))
    assert (second.needed, second.new) == (6, 0)
    plan(target)
    assert log_of(target) == before


def test_profiling_goes_on_where_the_time_ran_out(target: Path) -> None:
    assert not mpq.profile(model(), X[:1], [X], target=str(target), budget_s=1e-9).complete
    source = target.with_name("mine.py")
    source.write_text(
        CLASS.replace(
            "        return", "        import time; time.sleep(0.05)\n" + " " * 8 + "return"
        )
    )
    done = mpq.profile(model(), X[:1], [X], target=str(target), budget_s=0.12)
    assert not done.complete and 0 < done.new < 6
    rest = mpq.profile(model(), X[:1], [X], target=str(target))
    assert rest.complete and rest.new == 6 - done.new


def test_what_was_measured_before_a_failure_is_kept(target: Path) -> None:
    source = target.with_name("mine.py")
    failing = CLASS.replace("        return", "        assert (LOG.parent / 'fixed').exists()"
                            " or workload.operator != 'linear'\n        return")  # fmt: skip
    source.write_text(failing)
    with pytest.raises(mpq.DeviceError, match="linear w8a8, weight 4x8"):
        plan(target)
    assert log_of(target)[-1] == "closed"
    target.with_name("fixed").touch()
    plan(target)
    # Only the failed and the ones after it were asked for again.
    assert log_of(target).count("conv2d w8a8") == 4


def test_times_that_differ_are_repeated_and_their_median_taken(target: Path) -> None:
    times = "iter([5.0, 1.0, 2.0, 9.0, 3.0] * 6)"
    text = CLASS.replace("LOG =", f"TIMES = {times}\nLOG =")
    target.with_name("mine.py").write_text(
        text.replace("workload.macs * workload.weight_bits * 1e-9", "next(TIMES) * 1e-6")
    )
    plan(target)
    with Store() as store:
        rows = [row for key, row in store.items() if key.device.startswith("mine-Mine-1-")]
    assert len(rows) == 6
    for row in rows:
        assert (row.count, row.median_us, row.min_us) == pytest.approx((5, 3.0, 1.0))


def test_the_plan_is_compiled_for_this_machine(target: Path) -> None:
    network = mpq.compile(
        model(), X[:1], [X], target=str(target), budget=mpq.Budget(latency_ms=0.3)
    )
    assert network.verification is None
    assert network.plan.predicted.latency_ms <= 0.3
    assert torch.equal(network(X), network.reference(X))


# What a workload says


def layer_output(w: mpq.Workload) -> Tensor:
    """Run a layer of the workload's shapes and geometry in PyTorch."""
    x, weight = torch.zeros(w.input_shape), torch.zeros(w.weight_shape)
    top, left, bottom, right = w.padding
    if w.operator == "linear":
        return F.linear(x, weight)
    if w.operator == "conv_transpose2d":
        full = F.conv_transpose2d(x, weight, stride=w.stride, dilation=w.dilation, groups=w.groups)
        return F.pad(full, (-left, -right, -top, -bottom))
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, stride=w.stride, dilation=w.dilation, groups=w.groups)


@pytest.mark.parametrize("case", ["convolutions", "transposed", "linears", "mobile"])
def test_a_layer_of_its_geometry_has_its_shapes(case: str) -> None:
    network = prepare(capture(CASES[case].model(), CASES[case].inputs(1)))
    for site in network.sites:
        workload = accelerator_workload(network, site, Candidate.parse("w4a8"))
        assert tuple(layer_output(workload).shape) == workload.output_shape, site.id
        assert (workload.weight_bits, workload.activation_bits) == (4, 8)
        depthwise = workload.groups > 1 and workload.weight_shape[1] == 1
        assert (workload.operator == "depthwise_conv2d") == depthwise or case == "transposed"


def test_a_workload_by_hand() -> None:
    network, site = _first_site(model(), X[:1])
    found = accelerator_workload(network, site, Candidate.parse("w4a8"))
    assert found == mpq.Workload(
        operator="conv2d",
        candidate="w4a8",
        input_shape=(1, 3, 6, 6),
        weight_shape=(8, 3, 3, 3),
        output_shape=(1, 8, 6, 6),
        padding=(1, 1, 1, 1),
        macs=36 * 8 * 27,
        weight_bits=4,
        activation_bits=8,
        weight_bytes=8 * 27 // 2 + 4 * 8,
    )
    assert str(found) == "conv2d w4a8, weight 8x3x3x3, 1x3x6x6 to 1x8x6x6"
    assert found.key == "1x3x6x6_8x3x3x3_1x8x6x6_1x1_1x1x1x1_1x1_g1"


def test_dynamic_activations_and_groups_of_weights() -> None:
    network, site = _first_site(nn.Sequential(nn.Linear(64, 8)).eval(), torch.randn(2, 64))
    found = accelerator_workload(network, site, Candidate.parse("w4a8g32d"))
    assert (found.operator, found.group_size, found.dynamic) == ("linear", 32, True)
    assert found.weight_bytes == 64 * 8 // 2 + 4 * 8 * 2


def _first_site(module: nn.Module, example: Tensor) -> tuple[Network, Site]:
    network = prepare(capture(module, example))
    return network, network.sites[0]


# Errors of the class


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("float('nan')", "nan"),
        ("float('inf')", "inf"),
        ("-1e-3", "-0.001"),
        ("0", "0"),
        ("None", "None"),
        ("True", "True"),
        ("'fast'", "'fast'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("workload.nothing", "has no attribute 'nothing'"),
        ("[][0]", "IndexError"),
    ],
)
def test_a_wrong_time_names_the_workload(target: Path, result: str, found: str) -> None:
    target.with_name("mine.py").write_text(
        CLASS.replace("workload.macs * workload.weight_bits * 1e-9", result)
    )
    with pytest.raises(mpq.DeviceError) as caught:
        plan(target)
    assert str(caught.value.where) == "conv2d w8a8, weight 8x3x3x3, 1x3x6x6 to 1x8x6x6"
    assert found in str(caught.value.found) and caught.value.expected and caught.value.remedy
    assert log_of(target)[-1] == "closed"
    with Store() as store:
        assert len(store) == 0


def test_a_device_that_cannot_be_opened_is_a_device_error(target: Path) -> None:
    target.with_name("mine.py").write_text(
        CLASS.replace('self.note("opened")', 'raise OSError("no board on /dev/npu0")')
    )
    with pytest.raises(mpq.DeviceError, match="cannot be opened") as caught:
        plan(target)
    assert "no board on /dev/npu0" in str(caught.value.found)


@pytest.mark.parametrize(
    ("device", "text", "message", "remedy"),
    [
        ("mine.py:Main", CLASS, "has no class 'Main'", "did you mean 'Mine'"),
        ("mine.py:LOG", CLASS, "has no class 'LOG'", "one of Mine"),
        ("mine.py:Mine", CLASS.replace("measure", "run"), "no method measure", "add measure"),
        ("mine.py:Mine", "import nowhere_at_all", "cannot be imported", "correct it"),
        ("mine.py:Mine", "class Mine(:", "cannot be imported", "correct it"),
        ("mine.py:Mine", "raise SystemExit(3)", "cannot be imported", "correct it"),
        ("nowhere.at_all:Mine", CLASS, "nowhere.at_all cannot be imported", "PYTHONPATH"),
        ("builtins:int", CLASS, "no method measure", "add measure"),
        (
            "mine.py:Mine",
            CLASS.replace('version = "1"', "version = property(lambda self: 1)"),
            "version of Mine is not a plain value",
            'version = "1"',
        ),
    ],
)
def test_a_class_that_cannot_be_had(
    target: Path, device: str, text: str, message: str, remedy: str
) -> None:
    target.write_text(PROFILE.replace("mine.py:Mine", device))
    target.with_name("mine.py").write_text(text)
    with pytest.raises(mpq.ProfileError) as caught:
        load_accelerator(load_profile(target))
    assert message in str(caught.value) and remedy in str(caught.value.remedy)
    assert str(caught.value.where).startswith(str(target))


# Where a class is found


def test_a_module_is_found_beside_the_profile(target: Path) -> None:
    (target.parent / "npu_parts").mkdir()
    target.with_name("mine.py").rename(target.parent / "npu_parts" / "driver.py")
    target.write_text(PROFILE.replace("mine.py:Mine", "npu_parts.driver:Mine"))
    assert load_accelerator(load_profile(target)).fingerprint.startswith("mine-Mine-1-")


def test_a_module_of_the_path_comes_first(
    target: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("installed")
    (folder / "npu_driver.py").write_text(CLASS.replace('version = "1"', 'version = "installed"'))
    target.with_name("mine.py").rename(target.with_name("npu_driver.py"))
    target.write_text(PROFILE.replace("mine.py:Mine", "npu_driver:Mine"))
    monkeypatch.syspath_prepend(folder)
    assert "-installed-" in load_accelerator(load_profile(target)).fingerprint


def test_the_class_may_import_its_neighbours(target: Path) -> None:
    target.with_name("npu_table.py").write_text("FACTOR = 1e-9")
    target.with_name("mine.py").write_text(
        "from npu_table import FACTOR\n" + CLASS.replace("1e-9", "FACTOR")
    )
    assert plan(target).predicted.latency_ms > 0
