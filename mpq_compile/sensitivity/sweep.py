"""What metrics that look at data share: options, slices, progress, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.progress import counted
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.checkpoint import Checkpoint, run_key
from mpq_compile.sensitivity.slices import Slice

Results = Mapping[str, Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One pass over the slices.

    Args:
        metric: The metric with its options, which are part of what makes a run the same.
        name: Its name.
        graph: The quantized graph.
        slices: The data.
        choices: Candidates of each site.
        resume: Keep finished slices in the cache folder until the pass is complete.
    """

    metric: object
    name: str
    graph: QuantizedGraph
    slices: Sequence[Slice]
    choices: Choices
    resume: bool = True

    def run(self, compute: Callable[[Slice, Advance], Results]) -> dict[str, list[Tensor]]:
        """Return what ``compute`` gives for each slice, by name, in the order of the slices.

        ``compute`` says with each call of its second argument that so many sites are done.
        """
        store = Checkpoint.open(self._key()) if self.resume else None
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
