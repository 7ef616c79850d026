"""The last state of a sequence that still meets a target: by brute force, binary, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpq_compile.errors import PlanError, nearest

SearchName = Literal["brute", "binary", "interpolation"]
Margin = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The index of the last state that meets the target, None if none does; states looked at."""

    index: int | None
    looked_at: int


def last_meeting(count: int, margin: Margin, search: str = "binary") -> Found:
    """Return the last of ``count`` states whose ``margin(index)`` is not negative.

    Binary and interpolation search assume that no margin is above an earlier one, up to its sign;
    brute force assumes nothing and looks at every state. Each state is looked at once at most, so
    a margin may cost an evaluation of a whole network.

    Raises:
        PlanError: The search is unknown.

    >>> last_meeting(1000, lambda n: 700.5 - n, "interpolation")
    Found(index=700, looked_at=5)
    """
    if search not in SEARCHES:
        raise PlanError(
            f"unknown search {search!r}",
            expected=f"one of {', '.join(SEARCHES)}",
            found=repr(search),
            remedy=nearest(search, SEARCHES),
        )
    seen: dict[int, float] = {}

    def look(index: int) -> float:
        if index not in seen:
            seen[index] = margin(index)
        return seen[index]

    index = SEARCHES[search](count, look) if count else None
    return Found(index=index, looked_at=len(seen))


def _brute(count: int, margin: Margin) -> int | None:
    meeting = [index for index in range(count) if margin(index) >= 0]
    return meeting[-1] if meeting else None


def _binary(count: int, margin: Margin) -> int | None:
    return _narrow(count, margin, [_middle])


def _interpolation(count: int, margin: Margin) -> int | None:
    # Every second guess halves the interval: a curve with a sharp bend costs twice binary search.
    return _narrow(count, margin, [_straight, _middle])


def _narrow(count: int, margin: Margin, guesses: Sequence[Callable[..., int]]) -> int | None:
    low, high = 0, count - 1
    if margin(low) < 0:
        return None
    if margin(high) >= 0:
        return high
    turn = 0
    while high - low > 1:
        at = guesses[turn % len(guesses)](low, high, margin)
        low, high = (at, high) if margin(at) >= 0 else (low, at)
        turn += 1
    return low


def _middle(low: int, high: int, margin: Margin) -> int:
    return (low + high) // 2


def _straight(low: int, high: int, margin: Margin) -> int:
    """Return where the line between the ends crosses zero, strictly between them."""
    fall = margin(low) - margin(high)
    part = margin(low) / fall if fall < float("inf") else 0.0
    return min(max(low + int(part * (high - low)), low + 1), high - 1)


SEARCHES: dict[str, Callable[[int, Margin], int | None]] = {
    "brute": _brute,
    "binary": _binary,
    "interpolation": _interpolation,
}
