"""A search on its way: weights and bits trained together, an epoch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.registry import SEARCHES
from mpq_compile.search.branches import BranchedGraph
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.price import Price
from mpq_compile.search.sharpness import Step, StepRule, running_statistics
from mpq_compile.training.epochs import Epochs
from mpq_compile.training.loss import Loss
from mpq_compile.training.state import TrainingState


@dataclass
class Run:
    """A search after some epochs.

    Args:
        graph: The network with all branches; its weights and logits are trained.
        loss: What they are trained for, beside what bits cost.
        options: How.
        epoch: Epochs that are done.
    """

    graph: BranchedGraph
    loss: Loss
    options: SearchOptions
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        options, first = self.options, self.graph.network.sites[0].macs
        self._rule: StepRule = SEARCHES.load(options.method)()
        self._radius = self._rule.radius
        limit = None if options.bops is None else options.bops / first
        self._price = Price(limit=limit, fixed=options.price or 0.0)
        self._statistics = running_statistics(self.graph.module)
        self._weights = list(self.graph.weights.values())
        self._logits = list(self.graph.logits.values())
        self._rates = [options.weight_rate * _root_mean_square(w) for w in self._weights]
        rates = [*self._rates, *(options.logit_rate for _ in self._logits)]
        parameters = zip([*self._weights, *self._logits], rates, strict=True)
        self._optimizer = torch.optim.Adam([{"params": [p], "lr": r} for p, r in parameters])

    def advance(self, data: Epochs) -> None:
        """Train for one epoch.

        Raises:
            CalibrationError: The loss or a gradient is no longer finite, or labels are missing.
        """
        self.graph.refit()
        for index, batch in enumerate(data.epoch(self.epoch)):
            share = (self.epoch + index / data.steps) / self.options.epochs
            falling = (1 + math.cos(math.pi * min(1.0, share))) / 2
            groups = self._optimizer.param_groups
            for group, rate in zip(groups, self._rates, strict=False):  # the weights come first
                group["lr"] = falling * rate
            self._step(batch)
        self.epoch += 1

    def _step(self, batch: Batch) -> None:
        complexity = float(self.graph.complexity().detach())
        price = self._price.at(complexity)

        def loss() -> Tensor:
            found = self.loss(self.graph.module(*batch.inputs), batch)
            return found + price * self.graph.complexity()

        step = self._rule(loss, self._weights, self._logits, self._radius, self._statistics)
        self._check(step, batch)
        gradients = (*step.weights, *step.logits)
        for value, gradient in zip([*self._weights, *self._logits], gradients, strict=True):
            value.grad = gradient
        self._optimizer.step()
        self._radius = step.radius

    def _check(self, step: Step, batch: Batch) -> None:
        if math.isfinite(step.loss) and all(bool(g.isfinite().all()) for g in step.weights):
            return
        raise CalibrationError(
            "the search diverged: loss or gradients are not finite",
            where=self._first_overflow(batch) or f"epoch {self.epoch}",
            expected="finite numbers",
            found=f"a loss of {step.loss}",
            remedy="look for samples that overflow in float, or lower weight_rate",
        )

    def _first_overflow(self, batch: Batch) -> str | None:
        """Return the first site whose output is not finite."""
        recorder = ValueRecorder(self.graph.module, lambda _, value: value)
        with torch.no_grad():
            recorder.run(*batch.inputs)
        network = self.graph.network
        values = ((site.id, recorder.kept[network.node_of[site.id]]) for site in network.sites)
        return next((site for site, value in values if not _finite(value)), None)

    def save(self, state: TrainingState) -> None:
        """Write all that the rest of the search depends on."""
        state.save(self.epoch, [*self._weights, *self._logits, self._kept()], self._optimizer)

    def restore(self, state: TrainingState) -> None:
        """Go on from what was saved; begin anew where nothing was.

        Raises:
            PlanError: The file is damaged, or of another search.
        """
        kept = self._kept()
        self.epoch = state.load([*self._weights, *self._logits, kept], self._optimizer)
        self._radius = kept.item()

    def _kept(self) -> nn.Parameter:
        """Return the radius in the form in which training keeps its state."""
        return nn.Parameter(torch.tensor(self._radius, dtype=torch.float64), requires_grad=False)


def _root_mean_square(value: Tensor) -> float:
    return float(value.detach().square().mean().sqrt())


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
