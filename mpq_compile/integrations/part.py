"""One part of a compiled model: what stands between two graph breaks, and its networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mpq_compile.capture import CapturedGraph, capture
from mpq_compile.errors import CaptureError, MpqError
from mpq_compile.integrations.backend_options import BackendOptions
from mpq_compile.integrations.bound_graph import BoundGraph
from mpq_compile.integrations.recording import Inputs, Seen
from mpq_compile.integrations.variants import build_variant
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.network import Network, prepare
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Plan

# Shapes and types of inputs; without the batch for a network that leaves it free.
Key = tuple[tuple[tuple[int, ...], torch.dtype], ...]
_SAME = 1e-5
NOT_SEEN = "no calibration batch reached it"


@dataclass(eq=False)
class Part:
    """What one or several graphs of Dynamo's compute that differ in nothing but sizes.

    Args:
        bound: The graph that it was captured from.
        example: Inputs of the shapes that are deployed.
        batches: Inputs to calibrate on, with labels.
        reason: Why it runs in eager PyTorch; "" where networks run it.
        remedy: What the user can do about that; "" where nothing is known.
        network: Its canonical float graph, where it has one.

    Attributes:
        session: Plans and builds it.
        plan: Its share of the plan.
        networks: One for each key.
        unbuilt: Why other shapes run in eager PyTorch.
        full: What is said when there are as many networks as are allowed; "" before.
    """

    bound: BoundGraph
    example: Inputs
    batches: list[tuple[Inputs, Tensor | None]]
    reason: str = ""
    remedy: str = ""
    network: Network | None = None
    session: Session | None = None
    plan: Plan | None = None
    networks: dict[Key, CompiledNetwork] = field(default_factory=dict)
    unbuilt: dict[Key, str] = field(default_factory=dict)
    full: str = ""

    @property
    def captured(self) -> CapturedGraph:
        """Its graph; only of a part that was captured."""
        assert self.network is not None
        return self.network.captured

    @property
    def has_weights(self) -> bool:
        """Whether it holds anything that could have been quantized."""
        return any(value.dim() > 1 for value in self.bound.constants)

    def data(self, labelled: bool = False) -> list[Any]:
        """Return calibration batches of the example's shapes, as ``mpq.plan`` takes them."""
        shapes = [value.shape[1:] for value in self.example]
        fitting = [
            (inputs, labels)
            for inputs, labels in self.batches
            if [value.shape[1:] for value in inputs] == shapes
        ]
        return [
            (inputs, labels) if labelled and labels is not None else inputs
            for inputs, labels in fitting
        ]

    def network_of(self, inputs: Sequence[Tensor]) -> CompiledNetwork | None:
        """Return the network that runs these inputs, where there is one."""
        return self.networks.get(shapes_of(inputs, 0)) or self.networks.get(shapes_of(inputs, 1))

    def add(self, network: CompiledNetwork, inputs: Sequence[Tensor]) -> None:
        """Take a network that was built for these inputs, of any batch where that is free."""
        self.networks[shapes_of(inputs, int(network.manifest.dynamic_batch))] = network

    def stands_for(self, bound: BoundGraph, inputs: Sequence[Tensor]) -> bool:
        """Tell whether another graph computes the same as this part.

        Dynamo compiles a function again for other sizes, and also where a flag of the model has
        changed. So operators and weights are compared, and results where the sizes allow it.
        """
        if bound is self.bound:
            return True
        if not (self.resembles(bound) and self.holds(bound)):
            return False
        if self.bound.graph.state:  # another run of it would change that again
            return True
        if shapes_of(inputs, 1) != shapes_of(self.example, 1):
            return True
        # A graph with sizes among its arguments runs at any, another one at its own.
        sized = bool(bound.graph.positions("size"))
        return _agree(self.bound, bound, self.example if sized else inputs)

    def resembles(self, bound: BoundGraph) -> bool:
        """Tell whether a graph has the operators of this part, and weights of the same names."""
        graph, own = bound.graph, self.bound.graph
        inputs = len(graph.positions("input")), len(own.positions("input"))
        return (
            bound.signature == self.bound.signature
            and bound.names == self.bound.names
            and (inputs[0] == inputs[1])
        )

    def holds(self, bound: BoundGraph) -> bool:
        """Tell whether a graph of the same names has the weights of this part."""
        pairs = zip(bound.constants, self.bound.constants, strict=True)
        state = self.bound.graph.state
        return all(a is b for i, (a, b) in enumerate(pairs) if i not in state)

    def network_for(
        self, bound: BoundGraph, inputs: Sequence[Tensor], options: BackendOptions
    ) -> CompiledNetwork | None:
        """Return the network of these shapes, built where it is new; None where none can run."""
        found, key = self.network_of(inputs), shapes_of(inputs, 0)
        if found is not None or key in self.unbuilt:
            return found
        if len(self.networks) + len(self.unbuilt) >= options.max_variants:
            self.full = (
                "input shapes beyond those that are compiled run in eager PyTorch "
                f"(max_variants={options.max_variants})"
            )
            return None
        assert self.session is not None and self.plan is not None
        try:
            captured = capture(bound.module, tuple(inputs))
            self.add(build_variant(self.session, self.plan, captured), inputs)
        except MpqError as error:
            self.unbuilt[key] = f"no network of these shapes: {error.message}"
        return self.network_of(inputs)


def shapes_of(inputs: Sequence[Tensor], first: int) -> Key:
    """Return shapes, from dimension ``first`` on, and types."""
    return tuple((tuple(value.shape[first:]), value.dtype) for value in inputs)


def gathered(graphs: Mapping[BoundGraph, Seen]) -> list[Part]:
    """Return the parts of a model from the graphs that were called, in the order of their calls."""
    parts: list[Part] = []
    _note_replaced(graphs)
    for bound, seen in graphs.items():
        part = next((part for part in parts if part.stands_for(bound, seen.example)), None)
        if part is None:
            part = Part(bound=bound, example=seen.example, batches=[])
            parts.append(part)
        # Sizes that are arguments leave the batch free; those that were traced may not.
        elif len(bound.graph.positions("size")) > len(part.bound.graph.positions("size")):
            part.bound = bound
        part.batches.extend(seen.batches)
        if seen.writes:
            part.reason = "it writes into its inputs"
            part.remedy = "return a new tensor in place of writing into an input"
    _set_apart_state(parts)
    return parts


def _set_apart_state(parts: Sequence[Part]) -> None:
    """Say why parts that change what the model holds, or read it, cannot be networks."""
    changed = {name for part in parts for name in part.bound.state}
    for part in parts:
        own = {i for i, name in enumerate(part.bound.names) if name in changed}
        if own:
            part.bound.graph.state |= own
            state = ", ".join(part.bound.names[i] for i in sorted(own))
            part.reason = (
                f"it uses {state}, which calls of the model change: networks have no state"
            )
            part.remedy = "let forward take and return what it changes, or keep that out of it"


def _note_replaced(graphs: Iterable[BoundGraph]) -> None:
    """Note as state what was another tensor under the same name in another call."""
    alike: dict[tuple[Any, ...], list[BoundGraph]] = {}
    for bound in graphs:
        if bound.named:
            alike.setdefault((bound.signature, bound.names), []).append(bound)
    for group in alike.values():
        columns = zip(*(bound.constants for bound in group), strict=True)
        replaced = {
            i for i, (first, *rest) in enumerate(columns) if any(t is not first for t in rest)
        }
        for bound in group:
            bound.graph.state |= replaced


def find_network(part: Part, met: Mapping[str, int], options: BackendOptions) -> None:
    """Capture a part and find its sites, or note why it runs in eager PyTorch.

    Args:
        part: It gets ``network``, or ``reason`` and ``remedy``.
        met: Sites of the parts before it, by path and operator.
        options: Of the backend.
    """
    if not part.reason:
        part.reason, part.remedy = _obstacle(part)
    if part.reason:
        return
    try:
        captured = capture(part.bound.module, part.example)
        network = prepare(replace(captured, met=dict(met)))
        kinds(network, options.allow_float)
    except CaptureError as error:
        where = f" ({error.where})" if error.where else ""
        part.reason, part.remedy = f"{error.message}{where}", error.remedy or ""
        return
    if network.sites:
        part.network = network
    else:
        part.reason = "it has nothing to quantize"


def _obstacle(part: Part) -> tuple[str, str]:
    """Return why no network can stand for a part, and what helps; "" twice where one can."""
    if not part.example:
        return "it takes no tensor", ""
    if obstacle := part.bound.graph.obstacle:
        return obstacle, ""
    if part.data():
        return "", ""
    if not part.batches:
        return NOT_SEEN, "give calibration batches that come to it"
    shapes = [", ".join(str(list(v.shape)) for v in x) for x in (part.batches[0][0], part.example)]
    return (
        f"no calibration batch has the shapes of the first call: {shapes[0]} instead of "
        f"{shapes[1]} (of any batch)",
        "give calibration batches of the shapes of the first call",
    )


def _agree(first: BoundGraph, second: BoundGraph, inputs: Sequence[Tensor]) -> bool:
    """Tell whether two graphs give the same on these inputs, in float."""
    results: list[Any] = []
    for bound in (first, second):
        try:
            with torch.no_grad():
                results.append(bound.module.forward(*inputs))
        except RuntimeError:  # the sizes of another call are written into it
            return first.graph.frame == second.graph.frame
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=_SAME, atol=_SAME, equal_nan=True)
        for a, b in zip(*results, strict=True)
    )
