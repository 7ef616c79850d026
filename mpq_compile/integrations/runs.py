"""How a graph that Dynamo calls is run: by a network, or in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, is_, itemgetter
from typing import Any, Protocol
from weakref import ref

from torch import Tensor, nn

from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.part import shapes_of
from mpq_compile.runtime.network import CompiledNetwork

_VERSION = attrgetter("_version")


class Run(Protocol):
    """One way to run a graph."""

    def fits(self, args: Sequence[Any]) -> bool:
        """Tell whether it may run a call with these arguments."""
        ...

    def __call__(self, args: Sequence[Any]) -> Any:
        """Run it."""
        ...


class Conditions:
    """What holds of every call that a run may take: weights, mode and input shapes; not state.

    Every call passes here, so there is as little as can be. Dynamo has compared all shapes of a
    graph that has no sizes among its arguments.

    Args:
        bound: The graph.
        inputs: Of the call that the run is made for.
        model: Asked whether it is in training mode; None for a function.
        first: Dimension from which on shapes have to be those of ``inputs``; None for none.
    """

    def __init__(
        self,
        bound: BoundGraph,
        inputs: Sequence[Tensor],
        model: nn.Module | None,
        first: int | None,
    ) -> None:
        fixed = bound.fixed
        self._constants = tuple(fixed.values())
        self._tracked = tuple(t for t in self._constants if not t.is_inference())
        self._versions = sum(map(_VERSION, self._tracked))
        self._held = items(tuple(fixed))
        self._numbers = tuple(bound.numbers.items())
        self._inputs = items(bound.graph.positions("input"))
        self._model: Callable[[], nn.Module | None] = (
            (lambda: None) if model is None else ref(model)
        )
        self._first = first if bound.graph.positions("size") else None
        self._shapes = None if self._first is None else shapes_of(inputs, self._first)

    def __call__(self, args: Sequence[Any]) -> bool:
        model = self._model()
        return (
            all(map(is_, self._held(args), self._constants))
            and sum(map(_VERSION, self._tracked)) == self._versions
            and (model is None or not model.training)
            and (not self._numbers or all(float(args[i]) == number for i, number in self._numbers))
            and (self._first is None or shapes_of(self._inputs(args), self._first) == self._shapes)
        )


def never(args: Sequence[Any]) -> bool:
    """The conditions of a run that is made anew for every call."""
    return False


class EagerRun:
    """A graph in float, as Dynamo gave it."""

    def __init__(self, bound: BoundGraph, fits: Callable[[Sequence[Any]], bool]) -> None:
        self._bound = bound
        self.fits = fits

    def __call__(self, args: Sequence[Any]) -> Any:
        return self._bound.run_float(args)


class NetworkRun:
    """A network in the place of a graph.

    Args:
        bound: The graph.
        network: What computes the same.
        inputs: Of the call that it is made for.
        fits: What holds of all calls.
    """

    def __init__(
        self,
        bound: BoundGraph,
        network: CompiledNetwork,
        inputs: Sequence[Tensor],
        fits: Conditions,
    ) -> None:
        self.fits = fits
        self._bound = bound
        self._inputs = items(bound.graph.positions("input"))
        self._compiled = [tuple(spec["shape"]) for spec in network.manifest.inputs]
        self._fast, self._any = network.run_compiled_shapes, network.executor.run
        self._sized = bool(bound.graph.positions("size"))
        self._exact = self._has_compiled_shapes(inputs)
        self._plain = all(output.kind == "computed" for output in bound.graph.outputs)

    def __call__(self, args: Sequence[Any]) -> Any:
        inputs = self._inputs(args)
        exact = self._has_compiled_shapes(inputs) if self._sized else self._exact
        computed = self._fast(inputs) if exact else self._any(inputs)
        return tuple(computed) if self._plain else self._bound.returned(computed, args)

    def _has_compiled_shapes(self, inputs: Sequence[Tensor]) -> bool:
        return [tuple(value.shape) for value in inputs] == self._compiled


def _nothing() -> None:
    """Stand for the reference to a model where there is none."""


def items(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return what takes these positions out of a sequence, always as a tuple."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda values: tuple(values[i] for i in positions)
