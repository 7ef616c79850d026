"""What candidates cost on a session's target: measured when first asked for, then learned."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from mpq_compile.allocate import P95_RATIO
from mpq_compile.anchors import network_anchors
from mpq_compile.cost.accelerator import accelerator_table
from mpq_compile.cost.effects import effects_of
from mpq_compile.cost.latency import LatencyModel, Observation
from mpq_compile.cost.store import Store, default_path
from mpq_compile.cost.table import (
    MeasuredCosts,
    analytic_table,
    is_measured,
    measured_table,
    workload_of,
)
from mpq_compile.cost.tune import Schedules, tune
from mpq_compile.kernels.choice import ChoiceOf, modelled
from mpq_compile.types import Candidate, CostTable

if TYPE_CHECKING:
    from mpq_compile.session import Session


class Costing:
    """Costs of a session's candidates on its target.

    Attributes:
        p95_ratio: 95th percentile over median of a call, as far as it is known.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.p95_ratio = P95_RATIO
        self._latency: LatencyModel | None = None
        self._schedules: Schedules | None = None
        self._end: float | None = None

    @property
    def table(self) -> CostTable:
        """Costs of each (site, candidate), after all that was measured."""
        return self._described_costs if self._session.analytic else self._table

    @cached_property
    def _described_costs(self) -> CostTable:
        """Costs by the target's equations, or by its class."""
        if self._session.profile.kind == "analytic":
            return analytic_table(
                self._session.network, self._session.choices, self._session.profile
            )
        with Store() as store:
            return accelerator_table(
                self._session.network, self._session.choices, self._session.profile, store
            )

    @cached_property
    def _table(self) -> CostTable:
        return self.latency.table()

    @cached_property
    def measured(self) -> MeasuredCosts:
        """Costs of kernels alone."""
        with Store() as store:
            # Planning neither tunes nor measures where all kernels are timed: what tuning left
            # undecided stays so until somebody profiles.
            if not self.is_measured(store):
                self.tune(store, self._left_s())
            return self.measured_in(store, self._left_s())

    def _left_s(self) -> float:
        """Return what is left of the time to measure, which begins when it is first asked for."""
        limit_s = self._session.measure_s
        if limit_s is None:
            return math.inf
        if self._end is None:
            self._end = time.monotonic() + limit_s
        return max(0.0, self._end - time.monotonic())

    def is_measured(self, store: Store) -> bool:
        """Tell whether the store has all kernels that planning needs."""
        return is_measured(
            self._session.network,
            self._session.choices,
            store,
            self._session.device,
            self.choice_of,
        )

    def measured_in(self, store: Store, budget_s: float, again: bool = False) -> MeasuredCosts:
        """Return the costs of kernels alone, those that the store lacks measured.

        ``again`` measures more of what was taken while the device was not as usual.
        """
        return measured_table(
            self._session.network,
            self._session.choices,
            store,
            self._session.device,
            budget_s=budget_s,
            choice_of=self.choice_of,
            estimate=self._session.measure_s is not None,
            again=again,
        )

    @property
    def latency_prior(self) -> LatencyModel:
        """What is believed of the network's latency before any whole network is measured."""
        alone = self.measured
        return LatencyModel(
            costs=alone.costs,
            kernels=alone.kernels,
            estimated=alone.estimated,
            effects=effects_of(self._session.network),
        )

    @property
    def latency(self) -> LatencyModel:
        """What is believed of the network's latency, from kernels and whole networks."""
        if self._latency is None:
            model = self.latency_prior
            with Store() as store:
                # Without time to measure, what is known of whole networks has to do.
                timed = self._left_s() > 0
                anchors = network_anchors(self._session, model.costs, store, measured=timed)
            self._latency = model.learned(anchors)
        return self._latency

    def learn(self, observation: Observation) -> None:
        """Take a whole network that was measured into the latency model."""
        self._latency = self.latency.learned([observation])
        self.__dict__.pop("_table", None)

    def forget(self) -> None:
        """Go back to the latency model that a new session would have."""
        self._latency = None
        self.p95_ratio = P95_RATIO
        self.__dict__.pop("_table", None)

    def prediction_error(self, assignment: Mapping[str, str]) -> float:
        """Return the relative standard deviation of the prediction for an assignment."""
        prediction = self.latency.predict(assignment)
        return prediction.sd_us / prediction.mean_us

    def tune(self, store: Store, limit_s: float = math.inf) -> None:
        """Search schedules for the kernels of all candidates, before their costs are measured."""
        if not self._session.tuning_s:
            return
        workloads = [
            workload_of(self._session.network, site, Candidate.parse(name), self._session.tier)
            for site in self._session.network.sites
            if site.multiplies
            for name in self._session.choices[site.id]
        ]
        tune(workloads, store, self._session.device, min(self._session.tuning_s, limit_s))
        self._schedules = Schedules.read(store, self._session.device)

    @property
    def choice_of(self) -> ChoiceOf:
        """Schedules of this session's kernels: those decided when it first asks for them."""
        if not self._session.tuning_s:
            return modelled
        if self._schedules is None:
            if not default_path().exists():
                return modelled
            with Store() as store:
                self._schedules = Schedules.read(store, self._session.device)
        return self._schedules
