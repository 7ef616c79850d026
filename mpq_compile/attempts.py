"""Which of the networks that were built for a latency budget to return, and when to stop.

A budget is for every later day, and an interval speaks of the minutes it was measured in. So a
network should keep the budget with room for the drift of the device between occasions and for how
its own processes differ, and should not leave much more than that unused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.types import Budget, Plan, Verification

# One-sided: a network that is as far below its budget as this many standard deviations of a later
# process is above it on one of twenty later occasions.
Z_LATER = 1.645
# Unused budget beyond that room, as a share of the budget, that is worth another round.
SLACK = 0.03


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A network that was measured and accepted.

    Args:
        network: What was built.
        unused: The share of the budget that it leaves.
        room: The share that it should leave for later occasions.
    """

    network: CompiledNetwork
    unused: float
    room: float

    @property
    def is_roomy(self) -> bool:
        """Tell whether later occasions have room."""
        return self.unused >= self.room

    @property
    def plan(self) -> Plan:
        """What was built."""
        return self.network.plan


@dataclass
class Attempts:
    """The rounds of one budget.

    Args:
        budget: With a bound on latency.
        drift: Relative standard deviation of the device's speed between two occasions.
    """

    budget: Budget
    drift: float
    _accepted: list[Attempt] = field(default_factory=list, init=False)
    _built: list[Plan] = field(default_factory=list, init=False)
    _spread: float = field(default=0.0, init=False)
    least_seen_ms: float = field(default=float("inf"), init=False)
    # Whether the machine did whenever something was measured.
    settled: bool = field(default=True, init=False)

    @property
    def room(self) -> float:
        """Share of the budget to leave unused for later occasions, by what was seen last.

        Processes of one network that differ by more than the device drifts were disturbed; the
        excess is not the network's.
        """
        margin = Z_LATER * math.hypot(self.drift, min(self._spread, self.drift))
        return margin / (1 + margin)

    def aimed(self, error: float) -> Budget:
        """Return the budget to solve for: a plan whose prediction is off by ``error`` fits."""
        middle = 1 - self.room - SLACK / 2
        return self.budget.with_latency_scaled(min(middle, 1 / (1 + error)))

    def is_worth_building(self, plan: Plan) -> bool:
        """Tell whether a plan may become a better network than those there are."""
        if self._roomy:
            return _loses_less(plan, self.best.plan)
        if self._accepted:
            return all(plan.assignment != built.assignment for built in self._built)
        return True

    def add(self, network: CompiledNetwork, seen: Verification) -> None:
        """Take what was measured into account."""
        self._built.append(network.plan)
        self.least_seen_ms = min(self.least_seen_ms, seen.latency_ms_upper95)
        self.settled = self.settled and seen.settled
        self._spread = seen.process_spread
        if seen.status == "accepted":
            self._accepted.append(
                Attempt(network=network, unused=unused(seen, self.budget), room=self.room)
            )

    @property
    def any(self) -> bool:
        """Tell whether a network was accepted."""
        return bool(self._accepted)

    @property
    def enough(self) -> bool:
        """Tell whether the best network leaves room for later occasions, and little more."""
        return bool(self._roomy) and self._best.unused <= self._best.room + SLACK

    @property
    def best(self) -> CompiledNetwork:
        """The network to return: of those that leave room the one that loses least.

        Where none leaves room, the one that leaves most of it.
        """
        return self._best.network

    @property
    def _best(self) -> Attempt:
        if not self._roomy:
            return max(self._accepted, key=lambda attempt: attempt.unused - attempt.room)
        best = self._roomy[0]
        for attempt in self._roomy[1:]:
            if _loses_less(attempt.plan, best.plan):
                best = attempt
        return best

    @property
    def _roomy(self) -> list[Attempt]:
        return [attempt for attempt in self._accepted if attempt.is_roomy]


def unused(seen: Verification, budget: Budget) -> float:
    """Return the least share of a bound on latency that the estimates leave; 1 without any."""
    used = [
        found / limit
        for found, limit in (
            (seen.latency_ms, budget.latency_ms),
            (seen.latency_p95_ms, budget.latency_p95_ms),
        )
        if limit is not None
    ]
    return 1 - max(used, default=0.0)


def _loses_less(plan: Plan, other: Plan) -> bool:
    """Tell whether a plan loses less than another by more than rounding."""
    assert plan.loss is not None and other.loss is not None
    return plan.loss < other.loss - 1e-6 * abs(other.loss)
