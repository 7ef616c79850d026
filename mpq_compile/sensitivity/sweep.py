"""What metrics that look at data share: options, slices, progress, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.checkpoint import Checkpoint, run_key
from mpq_compile.sensitivity.slices import Slice, cut
from mpq_compile.workpool import Results, Work, current_pool, titled

Advance = Callable[[int], None]
# From a slice, the values of every node in float, and the candidates of one site.
OneSite = Callable[[Slice, Mapping[str, Any], Choices, Advance], Results]


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
            says ``resume``, finished slices are kept in the cache folder, and read from it.
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
        units = {index: [f"{index}"] for index in range(len(self.slices))}
        return self._run(units, lambda unit, advance: compute(self.slices[int(unit)], advance))

    def run_by_site(self, compute: OneSite) -> dict[str, list[Tensor]]:
        """Return what ``compute`` gives for each slice, the rows of all its sites below each other.

        A site of a slice is a unit of work, where a slice would be a large one.
        """
        sites = list(self.choices)
        numbers = range(len(sites))
        kept: dict[int, Mapping[str, Any]] = {}

        def of(unit: str, advance: Advance) -> Results:
            index, number = map(int, unit.split(":"))
            part, site = self.slices[index], sites[number]
            if index not in kept:
                kept.clear()  # there is memory for one slice
                kept[index] = self.graph.float_values(part.batch)
            return compute(part, kept[index], {site: self.choices[site]}, advance)

        units = {index: [f"{index}:{n}" for n in numbers] for index in range(len(self.slices))}
        return self._run(units, of)

    def _run(
        self, units: Mapping[int, Sequence[str]], compute: Callable[[str, Advance], Results]
    ) -> dict[str, list[Tensor]]:
        """Compute the units of the slices that were not kept; keep each slice that is complete."""
        store = Checkpoint.open(self._key) if self.metric.resume else None
        found = self._kept(store)
        sites = len(self.choices)
        title = titled(f"sensitivity ({self.name})")
        with counted(len(self.slices) * sites, title) as advance:
            advance(len(found) * sites)
            left = {index: names for index, names in units.items() if index not in found}
            for index, results, took_s in self._complete(left, compute, advance):
                found[index] = results
                if store:
                    store.save(index, results, took_s)
        if store:
            store.finish()
        names = found[0].keys() if found else ()
        return {name: [found[index][name] for index in sorted(found)] for name in names}

    def _kept(self, store: Checkpoint | None) -> dict[int, Results]:
        if store is None:
            return {}
        stored = {index: store.load(index) for index in range(len(self.slices))}
        return {index: results for index, results in stored.items() if results is not None}

    def _complete(
        self,
        units: Mapping[int, Sequence[str]],
        compute: Callable[[str, Advance], Results],
        advance: Advance,
    ) -> Iterator[tuple[int, Results, float]]:
        """Yield each slice when all of its units are there, and the seconds since the last."""
        slice_of = {unit: index for index, names in units.items() for unit in names}
        arrived: dict[str, Results] = {}
        own: set[str] = set()
        start = time.perf_counter()

        def here(unit: str) -> Results:
            own.add(unit)
            return compute(unit, advance)

        work = Work(key=lambda: self._key, units=list(slice_of), compute=here)
        for unit, results in current_pool().results(work):
            arrived[unit] = results
            names = units[slice_of[unit]]
            if unit not in own:
                advance(len(self.choices) // len(names))
            if all(name in arrived for name in names):
                whole = stacked([arrived.pop(name) for name in names])
                yield slice_of[unit], whole, time.perf_counter() - start
                start = time.perf_counter()

    @cached_property
    def _key(self) -> str:
        return run_key(f"{self.metric}", self.graph, self.slices, self.choices)


def stacked(parts: Sequence[Results]) -> Results:
    """Return the rows of several results below each other, by name."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return [rows, N] from the slices' [rows, B]."""
    return torch.cat(list(parts), 1)
