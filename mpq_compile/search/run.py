"""A search on its way: weights and bits trained together, an epoch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.registry import SEARCHES
from mpq_compile.search.branches import BranchedGraph
from mpq_compile.search.checkpoint import Snapshot, optimizer_tensors, restore_optimizer
from mpq_compile.search.objective import Price, cross_entropy
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.sharpness import Step, StepRule, running_statistics
from mpq_compile.sensitivity.heads import Head


@dataclass
class Run:
    """A search after some epochs.

    Args:
        graph: The network with all branches; its weights and logits are trained.
        head: The output that holds class scores.
        options: How.

    Attributes:
        epoch: Epochs that are done.
        loss: Mean loss of the last of them, at the weights themselves; NaN before the first.
    """

    graph: BranchedGraph
    head: Head
    options: SearchOptions
    epoch: int = 0
    loss: float = math.nan

    def __post_init__(self) -> None:
        options = self.options
        self._rule: StepRule = SEARCHES.load(options.method)()
        self._radius = self._rule.radius
        first = self.graph.network.sites[0].macs
        limit = None if options.bops is None else options.bops / first
        self._price = Price(limit=limit, fixed=options.price or 0.0)
        self._weights, self._logits = self.graph.weights, self.graph.logits
        self._statistics = running_statistics(self.graph.module)
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "weights": torch.optim.SGD(
                self._weights.values(),
                options.weight_rate,
                options.momentum,
                weight_decay=options.weight_decay,
            ),
            "logits": torch.optim.Adam(self._logits.values(), options.logit_rate),
        }

    def advance(self, batches: Sequence[Batch]) -> None:
        """Train for one epoch.

        Raises:
            CalibrationError: The loss or a gradient is no longer finite.
        """
        self.graph.refit()
        generator = torch.Generator().manual_seed(self.options.seed + (self.epoch << 32))
        pieces = list(self._pieces(batches, generator))
        losses = []
        for index, batch in enumerate(pieces):
            done = (self.epoch + index / len(pieces)) / self.options.epochs
            for group in self._optimizers["weights"].param_groups:
                group["lr"] = self.options.weight_rate * (1 + math.cos(math.pi * done)) / 2
            losses.append(self._step(batch))
        self.epoch += 1
        self.loss = math.fsum(losses) / len(losses)

    def _pieces(self, batches: Sequence[Batch], generator: torch.Generator) -> Iterator[Batch]:
        """Yield all samples once, in a random order."""
        if not self.graph.network.captured.dynamic_batch:
            for index in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[index]
            return
        inputs = [torch.cat(values) for values in zip(*(b.inputs for b in batches), strict=True)]
        labels = torch.cat([b.labels for b in batches if b.labels is not None])
        order = torch.randperm(len(inputs[0]), generator=generator)
        for chosen in order.split(self.options.batch):
            yield Batch(inputs=tuple(value[chosen] for value in inputs), labels=labels[chosen])

    def _step(self, batch: Batch) -> float:
        complexity = float(self.graph.complexity().detach())
        price = self._price.at(complexity)

        def loss() -> Tensor:
            assert batch.labels is not None
            outputs = self.graph.module(*batch.inputs)
            cost = price * self.graph.complexity()
            return cross_entropy(self.head, outputs, batch.labels) + cost

        weights, logits = list(self._weights.values()), list(self._logits.values())
        step = self._rule(loss, weights, logits, self._radius, self._statistics)
        self._check(step, batch)
        for values, gradients in ((weights, step.weights), (logits, step.logits)):
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient
        for optimizer in self._optimizers.values():
            optimizer.step()
        self._price, self._radius = self._price.after(complexity), step.radius
        return step.loss

    def _check(self, step: Step, batch: Batch) -> None:
        if math.isfinite(step.loss) and all(bool(g.isfinite().all()) for g in step.weights):
            return
        raise CalibrationError(
            "the search diverged: loss or gradients are not finite",
            where=self._first_overflow(batch) or f"epoch {self.epoch}",
            expected="finite numbers",
            found=f"a loss of {step.loss}",
            remedy="lower weight_rate",
        )

    def _first_overflow(self, batch: Batch) -> str | None:
        """Return the first site whose output is not finite."""
        recorder = ValueRecorder(self.graph.module, lambda _, value: value)
        with torch.no_grad():
            recorder.run(*batch.inputs)
        network = self.graph.network
        return next(
            (s.id for s in network.sites if not _finite(recorder.kept[network.node_of[s.id]])), None
        )

    def snapshot(self) -> Snapshot:
        """Return all that the rest of the search depends on."""
        tensors: dict[str, Tensor] = {f"value.{n}": v for n, v in self._named()}
        for name, optimizer in self._optimizers.items():
            tensors |= optimizer_tensors(optimizer, name)
        numbers = {
            "epoch": self.epoch,
            "loss": self.loss,
            "radius": self._radius,
            "pressure": self._price.pressure,
        }
        return Snapshot(tensors=tensors, numbers=numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of the same search."""
        with torch.no_grad():
            for name, value in self._named():
                value.copy_(snapshot.tensors[f"value.{name}"])
        for name, optimizer in self._optimizers.items():
            restore_optimizer(optimizer, name, snapshot.tensors)
        self.epoch, self.loss = snapshot.numbers["epoch"], snapshot.numbers["loss"]
        self._radius = snapshot.numbers["radius"]
        self._price = replace(self._price, pressure=snapshot.numbers["pressure"])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((f"weight.{n}", v) for n, v in self._weights.items())
        yield from ((f"logits.{n}", v) for n, v in self._logits.items())


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
