"""What metrics that look at data share: options, slices, progress, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.checkpoint import Checkpoint, run_key
from mpq_compile.sensitivity.slices import Slice, cut

Results = Mapping[str, Tensor]
Advance = Callable[[int], None]


class Options(Protocol):
    """What every metric that looks at data is asked for."""

    @property
    def samples(self) -> int: ...
    @property
    def memory_mb(self) -> float: ...
    @property
    def resume(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One pass over the slices.

    Args:
        metric: The metric with its options, which are part of what makes a run the same. Where it
            says ``resume``, finished slices stay in the cache folder until the pass is complete.
        name: Its name.
        graph: The quantized graph.
        slices: The data.
        choices: Candidates of each site.
    """

    metric: Options
    name: str
    graph: QuantizedGraph
    slices: Sequence[Slice]
    choices: Choices

    @classmethod
    def of(
        cls,
        metric: Options,
        name: str,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
        sample_bytes: float,
    ) -> Sweep:
        """Cut the data so that ``sample_bytes`` of each sample fit into the metric's memory."""
        return cls(
            metric=metric,
            name=name,
            graph=QuantizedGraph(network, calibration),
            slices=cut(batches, network, metric.samples, sample_bytes, metric.memory_mb),
            choices=choices,
        )

    def run(self, compute: Callable[[Slice, Advance], Results]) -> dict[str, list[Tensor]]:
        """Return what ``compute`` gives for each slice, by name, in the order of the slices.

        ``compute`` says with each call of its second argument that so many sites are done.
        """
        store = Checkpoint.open(self._key()) if self.metric.resume else None
        found: dict[str, list[Tensor]] = {}
        sites = len(self.choices)
        with counted(len(self.slices) * sites, f"sensitivity ({self.name})") as advance:
            for index, part in enumerate(self.slices):
                stored = store.load(index) if store else None
                if stored is not None:
                    advance(sites)
                results = stored or self._timed(index, part, compute, advance, store)
                for key, value in results.items():
                    found.setdefault(key, []).append(value)
        if store:
            store.clear()
        return found

    def _timed(
        self,
        index: int,
        part: Slice,
        compute: Callable[[Slice, Advance], Results],
        advance: Advance,
        store: Checkpoint | None,
    ) -> Results:
        start = time.perf_counter()
        results = compute(part, advance)
        if store:
            store.save(index, results, time.perf_counter() - start)
        return results

    def _key(self) -> str:
        return run_key(f"{self.metric}", self.graph, self.slices, self.choices)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return [rows, N] from the slices' [rows, B]."""
    return torch.cat(list(parts), 1)
