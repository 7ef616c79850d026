"""Verdicts on measured latencies, the turns of timing, and the energy counters."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mpq_compile as mpq
from mpq_compile.runtime.fresh import time_in_fresh_process
from mpq_compile.runtime.rapl import EnergyMeter
from mpq_compile.runtime.timing import Timings, time_in_turns
from mpq_compile.runtime.usual import remember_ms, usual_ms
from mpq_compile.runtime.verify import bootstrap, judge, measure_artifact, settled, time_settled


def timings(
    blocks_ms: list[float], reference_ms: float = 1.0, energy_mj: float | None = None
) -> Timings:
    """One process whose blocks hold calls around the given medians."""
    spread = np.linspace(0.99, 1.01, 21)
    return Timings(
        latencies_ms=[[list(median * spread) for median in blocks_ms]],
        reference_ms=[reference_ms] * len(blocks_ms),
        usual_ms=1.0,
        repeated=0,
        energy_mj=[energy_mj],
        memory_bytes=1000,
    )


@pytest.mark.parametrize(
    ("blocks", "reference", "budget", "status"),
    [
        ([1.0, 1.01], 1.0, 1.1, "accepted"),
        ([1.0, 1.01], 1.5, 1.1, "accepted"),  # slow surroundings only make it harder
        ([1.0, 1.01], 1.0, 1.005, "rejected"),
        ([1.0, 1.01], 1.5, 1.005, "inconclusive"),
        ([1.0, 1.01], 1.5, 0.6, "inconclusive"),  # surroundings slow networks up to twofold
        ([1.0, 1.01], 1.5, 0.4, "rejected"),  # hopeless whatever the surroundings
        ([1.0, 1.8], 1.0, 1.2, "inconclusive"),  # the network itself does not settle
        ([1.0, 1.01], 1.0, None, "unbounded"),
    ],
)
def test_verdict(blocks: list[float], reference: float, budget: float | None, status: str) -> None:
    usual, noisy = timings(blocks), timings(blocks, reference)
    given = {} if budget is None else {"latency_ms": budget}
    verdict = judge([usual, noisy, noisy], given)
    assert verdict.status == status
    assert verdict.within_budget == {"accepted": True, "unbounded": None}.get(status, False)
    assert verdict.settled == (reference == 1.0 and max(blocks) < 1.5)


def test_a_process_that_was_slow_throughout_is_seen_by_the_others() -> None:
    """Its own reference was never faster, so only the other processes tell what is usual."""
    slow = Timings(**{**timings([2.0], 1.6).to_json(), "usual_ms": 1.6})
    verdict = judge([timings([1.9]), slow, slow], {"latency_ms": 1.95})
    assert verdict.reference_drift == pytest.approx(0.6)
    assert verdict.status == "inconclusive"


def test_spread_between_processes_leaves_out_a_disturbed_one() -> None:
    middles = [1.0, 1.01, 0.99, 1.0, 1.5]
    verdict = judge([timings([ms] * 3) for ms in middles], {"latency_ms": 2.0})
    assert verdict.process_spread == pytest.approx(1.4826 * 0.01 * (5 / 4) ** 0.5)
    assert judge([timings([1.0])], {"latency_ms": 2.0}).process_spread == 0.0


def test_percentiles_and_energy() -> None:
    verdict = judge([timings([1.0, 1.0], energy_mj=3.0)], {"latency_p95_ms": 1.02}, device="d")
    assert verdict.latency_ms == pytest.approx(1.0)
    assert verdict.latency_p95_ms == pytest.approx(1.009)
    assert verdict.latency_p99_ms == pytest.approx(1.01, abs=1e-3)
    assert (verdict.energy_mj, verdict.energy_source) == (3.0, "rapl")
    assert (verdict.status, verdict.device, verdict.memory_bytes) == ("accepted", "d", 1000)
    assert judge([timings([1.0], energy_mj=3.0)], {"energy_mj": 2.9}).status == "rejected"
    assert judge([timings([1.0], energy_mj=3.0)], {"energy_mj": 3.1}).status == "accepted"
    from_profile = judge([timings([1.0])], {}, profile_energy_mj=0.5)
    assert (from_profile.energy_mj, from_profile.energy_source) == (0.5, "profile")


def test_bootstrap_covers_the_median_of_processes_that_differ() -> None:
    """Blocks of one process share its luck: the interval must be as wide as processes differ."""
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        levels = generator.normal(10.0, 1.0, 8)
        runs = [[[x] for x in generator.normal(level, 0.1, 6)] for level in levels]
        interval = bootstrap(runs, lambda block: float(block[0]), seed=trial)
        covered += interval.lower <= 10.0 <= interval.upper
    assert covered >= 85


def test_no_interval_of_a_time_reaches_zero() -> None:
    """A budget far below two processes that differ tenfold is missed, whatever disturbs them."""
    found = [timings([1.0] * 6, reference_ms=1.5), timings([10.0] * 6, reference_ms=1.5)]
    verification = judge(found, {"latency_ms": 1e-9})
    assert 0 < verification.latency_ms_lower95 < verification.latency_ms
    assert verification.status == "rejected"


class Machine:
    """A reference workload that takes 1 ms, or 2 ms where the machine is slow."""

    def __init__(self) -> None:
        self.slow = False

    def __call__(self) -> float:
        return 2.0 if self.slow else 1.0


def test_a_slow_block_is_measured_again() -> None:
    """Of two networks in turns, only the one whose block was disturbed."""
    machine, values = Machine(), itertools.count()

    def disturbed() -> list[float]:
        value = float(next(values))
        machine.slow = value == 1
        return [value]

    def reference() -> float:
        found = machine()
        looks.append(found)
        if looks[-9:] == [2.0] * 9:  # the machine recovers after a while
            machine.slow = False
        return found

    looks: list[float] = []
    found = time_in_turns([disturbed, lambda: [7.0]], reference, blocks=3)
    assert found.latencies_ms == [[[0.0], [2.0], [3.0]], [[7.0]] * 3]
    assert (found.repeated, found.usual_ms, found.reference_ms) == (1, 1.0, [1.0] * 3)


def test_a_machine_that_stays_slow_ends_the_repeating() -> None:
    machine = Machine()

    def timer() -> list[float]:
        machine.slow = True
        return [1.0]

    found = time_in_turns([timer], machine, blocks=2)
    assert (found.repeated, found.reference_ms) == (2 * 15, [2.0, 2.0])
    assert found.usual_ms == 1.0


def test_without_patience_a_slow_machine_is_told_of_at_once() -> None:
    """Nothing is repeated and nothing waited for; what was beside the blocks is said as ever."""
    looks: list[float] = []

    def slow() -> float:
        looks.append(2.0)
        return 2.0

    found = time_in_turns([lambda: [1.0]], slow, blocks=2, known_ms=1.0, patience_s=-1.0)
    assert (found.repeated, found.reference_ms) == (0, [2.0, 2.0])
    assert len(looks) == 3 * (1 + 1) + 2 * 2  # to know what is usual; before and after a block
    assert not settled([found])


@pytest.mark.parametrize("given", ["soon", "-1", "inf", "1e7"])
def test_a_patience_that_is_no_time_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MPQ_PATIENCE", given)
    with pytest.raises(mpq.DeviceError, match="MPQ_PATIENCE is not a time"):
        time_in_fresh_process([tmp_path], 1)


def test_what_is_usual_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest tenth of earlier processes; a damaged file, or none at all, is no error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert usual_ms("vnni", 2) is None
    for found in (1.0, 2.0, 2.0, 1.0, 0.5, *[2.0] * 8):
        remember_ms(found, "vnni", 2)
    assert usual_ms("vnni", 2) == 1.0
    assert usual_ms("vnni", 4) is None
    for _ in range(35):
        remember_ms(3.0, "vnni", 2)
    assert usual_ms("vnni", 2) == 2.0  # so many could be one bad hour
    remember_ms(3.0, "vnni", 2)
    assert usual_ms("vnni", 2) == 3.0
    (tmp_path / "mpq_compile" / "quiet.json").write_text('{"a": 1')
    assert usual_ms("vnni", 2) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    remember_ms(1.0, "vnni", 2)
    assert usual_ms("vnni", 2) is None


def test_a_process_that_is_slow_from_the_start_knows_it_from_before() -> None:
    machine = Machine()
    machine.slow = True
    found = time_in_turns([lambda: [1.0]], machine, blocks=2, known_ms=1.0)
    assert (found.repeated, found.reference_ms, found.usual_ms) == (30, [2.0, 2.0], 2.0)
    assert not settled([found])
    assert settled([time_in_turns([lambda: [1.0]], machine, blocks=2)])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes in which the machine is slow are worth repeating."""
    monkeypatch.setenv("MPQ_PATIENCE", "1")


class Moody:
    """A device whose machine is slow in some processes: s with its reference, n the network."""

    def __init__(self, slow: str) -> None:
        self.slow = iter(slow)

    def lock(self) -> AbstractContextManager[None]:
        return nullcontext()

    def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
        mood = next(self.slow)
        latency_ms = 1.1 if mood == "n" else 1.0
        return replace(timings([latency_ms] * blocks, 2.0 if mood == "s" else 1.0), known_ms=1.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("slow", "kept"), [("ssfff", 3), ("sssfsf", 2), ("ssssss", 0)])
def test_a_slow_process_is_repeated(slow: str, kept: int) -> None:
    device = Moody(slow)
    found = time_settled(device, [Path("net")], 2, 3)
    assert [settled([timing]) for timing in found] == [True] * kept + [False] * (3 - kept)
    assert next(device.slow, None) is None


def test_without_patience_no_process_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_PATIENCE", "0")
    device = Moody("sfsff")
    found = time_settled(device, [Path("net")], 2, 3)
    assert [settled([timing]) for timing in found] == [True, False, False]
    assert "".join(device.slow) == "ff"


@pytest.mark.usefixtures("patient")
def test_the_first_processes_do_not_know_what_is_usual() -> None:
    """Two that were slow throughout thought so of themselves, until others saw the machine."""

    class New(Moody):
        def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
            found = super().time_networks(folders, blocks)
            return replace(found, known_ms=None, usual_ms=min(found.reference_ms))

    device = New("ssffff")
    found = time_settled(device, [Path("net")], 2, 4)
    assert [timing.usual_ms for timing in found] == [1.0] * 4
    assert next(device.slow, None) is None


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("moods", "processes"),
    [
        ("fffff", 5),
        ("nnnnn", 5),
        ("fnfff" + "ff", 7),  # one that differs may be the usual one: the others tell
        ("fnnfn" + "f" * 8, 13),
        ("fnfnnfnfnnfnfnn", 15),  # it does not become certain
        ("sffsfff", 5),  # disturbed ones are repeated,
        ("fnfff" + "s" * 10, 5),  # and make nothing more certain
    ],
)
def test_processes_follow_while_the_median_is_uncertain(moods: str, processes: int) -> None:
    device = Moody(moods)
    assert len(measure_artifact(Path("net"), device, 5)) == processes
    assert next(device.slow, None) is None


def test_rounds_of_several_networks_are_levelled() -> None:
    """A round that was slow for all is no news of any; one network alone cannot tell."""
    steady = [[1.0, 1.0, 3.0, 1.0], [2.0, 2.0, 6.0, 2.0], [5.0, 5.0, 15.0, 5.5]]
    several = Timings(
        **{
            **timings([1.0]).to_json(),
            "latencies_ms": [[[ms] * 3 for ms in row] for row in steady],
        }
    )
    assert several.levelled_ms(0) == pytest.approx([1.0] * 4)
    assert several.levelled_ms(2) == pytest.approx([5.0, 5.0, 5.0, 5.5])
    alone = timings([1.0, 1.0, 3.0])
    assert alone.levelled_ms(0) == alone.medians_ms(0) == pytest.approx([1.0, 1.0, 3.0])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_times_go_back_to_their_networks(order: list[int]) -> None:
    """Each process visits networks in its own order and answers in that of the question."""
    true = [1.0, 2.0, 5.0]
    visited = time_in_turns([lambda i=i: [true[i]] for i in order], lambda: 1.0, blocks=2)
    found = visited.reordered(order)
    assert [found.medians_ms(i) for i in range(3)] == [[ms, ms] for ms in true]


def test_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    """A child of a large process begins with its own memory."""
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    code = "from mpq_compile.runtime.timing import _resident_bytes as r; print(r())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < len(ballast)


def test_energy_counters(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "none").joules([]) is None
    for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text("1000000")
        (tmp_path / zone / "max_energy_range_uj").write_text("4000000")
    meter = EnergyMeter(tmp_path)
    start = meter.start()
    assert len(start) == 2  # a part of a package is in the package's energy
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000")  # went round once
    assert meter.joules(start) == pytest.approx(2.0 + 3.5)
