"""Which network of several rounds is returned, and when the rounds end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpq_compile.attempts import SLACK, Attempts, unused
from mpq_compile.cost.latency import Errors
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.types import Budget, Verification

BUDGET = Budget(latency_ms=1.0)
DRIFT = Errors().drift
ROOM = Attempts(BUDGET, DRIFT).room


def network(loss: float, assignment: str = "a") -> CompiledNetwork:
    """Stand for a network with this plan: nothing else of it decides."""
    plan = SimpleNamespace(loss=loss, assignment={"site": assignment})
    return cast(CompiledNetwork, SimpleNamespace(plan=plan))


def seen(ms: float, status: str = "accepted", **more: Any) -> Verification:
    fields = {name: 0 for name in Verification.__dataclass_fields__}
    fields |= {"latency_ms": ms, "latency_ms_upper95": 1.01 * ms, "status": status, **more}
    return Verification(**fields)


def test_room_is_for_one_of_twenty_later_occasions() -> None:
    """A network at the edge of the room is slowed past its budget by 1.645 deviations."""
    assert pytest.approx(1.0) == (1 - ROOM) * (1 + 1.645 * DRIFT)


def test_processes_that_differ_need_more_room() -> None:
    """As much again as the drift at most: beyond that they were disturbed."""
    for spread, counted in ((0.01, 0.01), (0.2, DRIFT)):
        attempts = Attempts(BUDGET, DRIFT)
        attempts.add(network(1.0), seen(0.965, process_spread=spread))
        assert not attempts.enough
        later = (DRIFT**2 + counted**2) ** 0.5
        assert pytest.approx(1.0) == (1 - attempts.room) * (1 + 1.645 * later)
    steady = Attempts(BUDGET, DRIFT)
    steady.add(network(1.0), seen(0.965))
    assert steady.enough


def test_what_is_aimed_at_leaves_room() -> None:
    attempts = Attempts(BUDGET, DRIFT)
    sure, unsure = attempts.aimed(0.001).latency_ms, attempts.aimed(0.2).latency_ms
    assert sure is not None and unsure is not None
    assert 1 - ROOM - SLACK < sure < 1 - ROOM
    assert unsure == pytest.approx(1 / 1.2)


def test_room_and_little_more_is_enough() -> None:
    attempts = Attempts(BUDGET, DRIFT)
    found = network(1.0)
    attempts.add(found, seen(1 - ROOM - SLACK / 2))
    assert attempts.enough and attempts.best is found


def test_a_network_without_room_is_kept_until_another_has_it() -> None:
    attempts = Attempts(BUDGET, DRIFT)
    tight, tighter, roomy = network(1.0, "a"), network(0.9, "b"), network(2.0, "c")
    attempts.add(tight, seen(0.985))
    assert attempts.any and not attempts.enough and attempts.best is tight
    attempts.add(tighter, seen(0.99))
    assert attempts.best is tight
    assert not attempts.is_worth_building(tighter.plan)
    assert attempts.is_worth_building(roomy.plan)
    attempts.add(roomy, seen(0.95))
    assert attempts.enough and attempts.best is roomy


def test_of_those_with_room_the_one_that_loses_least() -> None:
    attempts = Attempts(BUDGET, DRIFT)
    loose, missed, better = network(3.0, "a"), network(1.0, "b"), network(2.0, "c")
    attempts.add(loose, seen(0.7))
    assert not attempts.enough and attempts.best is loose
    attempts.add(missed, seen(1.02, "rejected"))
    assert not attempts.enough and attempts.best is loose
    assert attempts.is_worth_building(better.plan)
    assert not attempts.is_worth_building(network(3.0, "d").plan)
    attempts.add(better, seen(0.8))
    assert attempts.best is better
    assert attempts.least_seen_ms == pytest.approx(0.707)


def test_a_rejected_network_is_no_result() -> None:
    attempts = Attempts(BUDGET, DRIFT)
    attempts.add(network(1.0), seen(1.5, "rejected"))
    assert not attempts.any and not attempts.enough
    assert attempts.is_worth_building(network(1.0).plan)


def test_the_tighter_of_two_bounds_counts() -> None:
    verification = seen(0.5, latency_p95_ms=0.9)
    assert unused(verification, BUDGET) == pytest.approx(0.5)
    both = Budget(latency_ms=1.0, latency_p95_ms=1.0)
    assert unused(verification, both) == pytest.approx(0.1)
    assert unused(verification, Budget(energy_mj=1.0)) == 1.0
