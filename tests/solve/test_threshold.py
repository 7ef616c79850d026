"""The search for the cheapest good point, with known answers and wrong proxies."""

from __future__ import annotations

import numpy as np
import pytest

from mpq_compile.solve.threshold import Crossing, cheapest_within


def search(
    values: list[float], limit: float, measurements: int, costs: list[float] | None = None
) -> tuple[Crossing, list[int]]:
    """Return what was found and the points in the order in which they were measured."""
    asked: list[int] = []

    def value_of(point: int) -> float:
        asked.append(point)
        return values[point]

    costs = costs or [float(i + 1) for i in range(len(values))]
    found = cheapest_within(costs, value_of, limit, measurements)
    assert len(asked) == len(set(asked)) <= measurements
    assert found.measured == {i: values[i] for i in asked}
    if found.best is not None:
        assert values[found.best] <= limit
        assert all(values[i] > limit for i in asked if i < found.best)
    return found, asked


@pytest.mark.parametrize("threshold", [0, 1, 17, 500, 998, 999])
def test_a_right_proxy_needs_a_bisection(threshold: int) -> None:
    values = [float(i < threshold) for i in range(1000)]
    found, _ = search(values, 0.5, 14, costs=[1.02**i for i in range(1000)])
    assert found.best == threshold


@pytest.mark.parametrize("seed", range(20))
def test_as_many_measurements_as_points_give_the_minimum(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(size=25).tolist()
    found, _ = search(values, 0.2, 25)
    expected = next((i for i, v in enumerate(values) if v <= 0.2), None)
    assert found.best == expected
    assert found.exhaustive


def test_an_inverted_proxy_is_no_obstacle() -> None:
    """The most accurate by the proxy are the worst: bisection alone finds nothing."""
    values = [float(i) for i in range(100)]
    found, asked = search(values, 20.0, 16)
    assert asked[0] == 99
    assert found.best is not None and found.best <= 20


def test_a_dip_below_the_crossing_is_found() -> None:
    """One cheaper neighbour is good although those around it are not."""
    values = [1.0 if i < 60 else 0.0 for i in range(100)]
    values[56] = 0.0
    found, _ = search(values, 0.5, 16)
    assert found.best == 56


def test_nothing_is_good() -> None:
    found, asked = search([1.0] * 10, 0.5, 30)
    assert found.best is None and found.exhaustive
    assert sorted(asked) == list(range(10))
    found, asked = search([1.0] * 100, 0.5, 12)
    assert found.best is None and not found.exhaustive and len(asked) == 12


@pytest.mark.parametrize("count", [0, 1])
def test_few_points(count: int) -> None:
    found, _ = search([0.0] * count, 0.5, 3)
    assert found.best == (0 if count else None)
    assert found.exhaustive


def test_what_is_known_is_not_measured_again() -> None:
    values = [float(i < 30) for i in range(64)]
    known = {i: values[i] for i in (0, 28, 32, 63)}
    asked: list[int] = []

    def value_of(point: int) -> float:
        asked.append(point)
        return values[point]

    found = cheapest_within([1.0 + i for i in range(64)], value_of, 0.5, 4, known)
    assert found.best == 30 and not set(asked) & set(known) and len(asked) <= 4
    assert cheapest_within([1.0, 2.0], value_of, 0.5, 0, {0: 1.0, 1: 0.0}).best == 1
