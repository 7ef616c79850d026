"""What the parts of compiled models see while they are calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.running_call import RunningCall

Inputs = tuple[Tensor, ...]


@dataclass
class Seen:
    """What one graph was called with.

    Args:
        example: Inputs of the shapes that are deployed.
        batches: Batches to calibrate on, each with labels where the data has them.
        writes: Whether the graph wrote into its inputs.
    """

    example: Inputs
    batches: list[tuple[Inputs, Tensor | None]] = field(default_factory=list)
    writes: bool = False


@dataclass
class Recording:
    """While it is current, compiled models run in float and what their parts see is kept.

    Args:
        only: The compilation that is recorded; None for all that are called.

    Attributes:
        seen: By compilation, in the order in which its graphs were first called.
        calls: The first call of each compilation.
        probing: True while calls show shapes, and are no data.
        labels: Labels of the batch that runs.
    """

    only: Any = None
    seen: dict[Any, dict[BoundGraph, Seen]] = field(default_factory=dict)
    calls: dict[Any, RunningCall] = field(default_factory=dict)
    probing: bool = False
    labels: Tensor | None = None

    def accepts(self, compilation: Any) -> bool:
        """Tell whether a compilation is recorded."""
        return self.only is None or self.only is compilation

    def run(
        self, compilation: Any, bound: BoundGraph, args: Sequence[Any], call: RunningCall
    ) -> Any:
        """Run a graph in float and keep its inputs."""
        self.calls.setdefault(compilation, call)
        # Inference tensors could not be used outside of their mode.
        with torch.inference_mode(False):
            inputs = tuple(value.detach().clone() for value in bound.inputs_of(args))
        graphs = self.seen.setdefault(compilation, {})
        seen = graphs.setdefault(bound, Seen(example=inputs))
        if not self.probing:
            seen.batches.append((inputs, self.labels))
        result = bound.run_float(args)
        after = zip(inputs, bound.inputs_of(args), strict=True)
        bound.graph.state |= bound.written()
        seen.writes |= not all(_same(a, b) for a, b in after)
        return result


def _same(before: Tensor, after: Tensor) -> bool:
    if torch.equal(before, after):
        return True
    return before.is_floating_point() and torch.equal(before.nan_to_num(), after.nan_to_num())


CURRENT: ContextVar[Recording | None] = ContextVar("mpq_recording", default=None)


@contextmanager
def recorded(recording: Recording) -> Iterator[Recording]:
    """Make a recording the current one."""
    token = CURRENT.set(recording)
    try:
        yield recording
    finally:
        CURRENT.reset(token)
