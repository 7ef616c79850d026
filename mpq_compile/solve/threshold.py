"""The cheapest point whose measured value is within a limit, in few measurements.

Points are ordered by cost, and the value is expected to fall as the cost rises, because a proxy
said so. The proxy may be wrong, so a bisection alone could miss cheaper points that are good and
end beside points that are not. The search therefore

1. bisects, from the most expensive point;
2. looks below the best point found at distances that double, and bisects again where one is good;
3. spends what is left of its measurements on the widest unmeasured stretch below the best.

Every answer was itself measured, never inferred. With as many measurements as points it is the
exact minimum, whatever the order of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# A bisection ends where the costs on both sides differ by less than this, relatively.
RESOLUTION = 0.005


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What the search found.

    Args:
        best: Index of the cheapest point that was measured within the limit; None where none was.
        measured: Value of each measured point by index.
        exhaustive: True where every cheaper point was measured: ``best`` is the minimum.
    """

    best: int | None
    measured: dict[int, float]
    exhaustive: bool


def cheapest_within(
    costs: Sequence[float],
    value_of: Callable[[int], float],
    limit: float,
    measurements: int,
    known: Mapping[int, float] | None = None,
) -> Crossing:
    """Return the cheapest of the points whose value is at most ``limit``.

    Args:
        costs: Of the points, ascending.
        value_of: Measures a point; called at most ``measurements`` times, once a point.
        limit: Greatest value that will do.
        measurements: At least 1 where nothing is known.
        known: Values that were measured before, by index.

    >>> values = [9.0, 3.0, 5.0, 2.0, 1.0]
    >>> cheapest_within([1.0, 2.0, 3.0, 4.0, 5.0], values.__getitem__, 4.0, 5).best
    1
    """
    return _Search(costs, value_of, limit, measurements, known or {}).run()


class _Search:
    def __init__(
        self,
        costs: Sequence[float],
        value_of: Callable[[int], float],
        limit: float,
        measurements: int,
        known: Mapping[int, float],
    ) -> None:
        self._costs, self._value_of = costs, value_of
        self._limit, self._left = limit, measurements
        self._measured: dict[int, float] = dict(known)

    def run(self) -> Crossing:
        last = len(self._costs) - 1
        if last >= 0 and self._is_good(last):
            self._bisect()
            self._look_below()
        self._fill()
        best = self._best
        below = range(last + 1 if best is None else best)
        exhaustive = all(i in self._measured for i in below)
        return Crossing(best=best, measured=dict(self._measured), exhaustive=exhaustive)

    @property
    def _best(self) -> int | None:
        return min((i for i, v in self._measured.items() if v <= self._limit), default=None)

    def _is_good(self, point: int) -> bool:
        """Measure a point once; False where nothing may be measured any more."""
        if point not in self._measured:
            if self._left <= 0:
                return False
            self._left -= 1
            self._measured[point] = self._value_of(point)
        return self._measured[point] <= self._limit

    def _bisect(self) -> None:
        """Narrow the stretch between the best point and the measured one next below it."""
        while self._left > 0 and (best := self._best) is not None:
            low = max((i for i in self._measured if i < best), default=-1)
            middle = self._middle(low, best)
            if middle is None:
                return
            self._is_good(middle)

    def _middle(self, low: int, high: int) -> int | None:
        """Return the point to measure between two; None where they cost about the same."""
        if low < 0:  # the cheapest itself has not been seen
            return 0 if high > 0 else None
        bottom, top = self._costs[low], self._costs[high]
        if high - low < 2 or top - bottom <= RESOLUTION * abs(top):
            return None
        return (low + high) // 2

    def _look_below(self) -> None:
        distance = 1
        while self._left > 0 and (best := self._best) is not None and distance <= best:
            if best - distance not in self._measured and self._is_good(best - distance):
                self._bisect()
                distance = 1
                continue
            distance *= 2

    def _fill(self) -> None:
        """Measure in the middle of the widest unmeasured stretches below the best."""
        while self._left > 0:
            top = len(self._costs) if (best := self._best) is None else best
            known = [-1, *sorted(i for i in self._measured if i < top), top]
            width, low = max((b - a, a) for a, b in zip(known, known[1:], strict=False))
            if width < 2:
                return
            self._is_good(low + width // 2)
