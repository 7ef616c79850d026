"""Dynamo's graph of a frame → a module whose parameters have the names that the model gives them.

Dynamo lifts what a module holds to arguments of the graph and names them by how the frame reached
them (``L['self']._modules['conv1']._parameters['weight']``); sizes that change from call to call
are arguments too. Site ids come from the names of weights, so they are put right here, before
anything is captured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor, fx, nn

aten = torch.ops.aten

_STATE = re.compile(r"\._(?:modules|parameters|buffers)\['")
_BASE = re.compile(r"^[LG]\['([^']*)'\]")
_STEP = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]|\.(\w+)|\['?([^'\]]*)'?\]")
# Sizes may stand in these without changing what is computed; whether they do is tried out.
_RESHAPES = frozenset({"view", "reshape", "expand", "size", "getitem", "flatten", "unflatten"})

Role = Literal["constant", "input", "size", "number", "other"]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of Dynamo's graph.

    Args:
        role: ``constant`` is what a module holds, ``input`` a tensor of the call, ``size`` an
            integer that is a size of an input, ``number`` a float that is an attribute of a module
            (Dynamo passes it as a tensor where it makes floats dynamic), ``other`` anything else.
        name: Path of a constant below the frame's module, or name of an input.
        size_of: For a size: position of the argument and its dimension.
        used: Whether the graph reads it.
    """

    role: Role
    name: str
    size_of: tuple[int, int] | None = None
    used: bool = True


@dataclass(frozen=True, kw_only=True)
class Output:
    """A value that the graph returns: computed, an argument passed on, or a plain constant."""

    kind: Literal["computed", "argument", "plain", "size"]
    value: Any = None


class DynamoGraph:
    """A graph as the backend gets it. What is known of its arguments is read at once: Dynamo
    forgets it after compiling.

    Attributes:
        module: Calls with all arguments, in float.
        arguments: One for each.
        outputs: One for each value that is returned.
        break_reason: Why the graph ends where it does; "" at the end of the function.
        state: Positions among its constants of those that calls were seen to write or replace.
        frame: Number that Dynamo gives the function; recompiled graphs of it share it.
        is_last: Whether Dynamo's limit lets no other graph of the function follow.
    """

    def __init__(self, module: fx.GraphModule, examples: Sequence[Any]) -> None:
        self.module = module
        nodes = _placeholders(module.graph)
        self.arguments = _arguments(nodes, examples)
        self.outputs = _outputs(module.graph, nodes)
        self.break_reason = _break_reason(module)
        identity = torch._guards.CompileContext.current_compile_id()
        self.frame: int | None = identity.frame_id if identity else None
        self.is_last = bool(identity) and _is_last(identity)
        self.state: set[int] = set()

    def positions(self, role: Role) -> tuple[int, ...]:
        """Return the positions of the arguments of a role."""
        return tuple(i for i, a in enumerate(self.arguments) if a.role == role)

    def drop_guards_of_constants(self) -> None:
        """Take Dynamo's comparison of shapes and types off the constants, while it compiles.

        Every call compares their identity, which says more, and Dynamo's share of a call falls
        by a third. Guards that say that two names are one tensor stay.
        """
        context = torch._guards.TracingContext.try_get()
        if context is None:
            return
        nodes = _placeholders(self.module.graph)
        held = {_source(nodes[i]) for i in self.positions("constant")}
        guards = context.guards_context.dynamo_guards
        for guard in list(guards):
            if guard.create_fn_name() == "TENSOR_MATCH" and _name(guard.originating_source) in held:
                guards.inner.discard(guard)

    def signature(self, numbers: Mapping[int, float]) -> tuple[Any, ...]:
        """Return what is computed, whatever the sizes: targets of all nodes with tensors, in order.

        Args:
            numbers: The arguments that are numbers, by position.
        """
        graph = self.module.graph
        value_of = self._read_numbers(numbers)
        return tuple(
            (node.op, str(node.target), _settings(node, value_of))
            for node in graph.nodes
            if node.op not in ("placeholder", "output") and _named(node) not in _RESHAPES
            if isinstance(node.meta.get("example_value"), (Tensor, tuple, list))
        )

    def _read_numbers(self, numbers: Mapping[int, float]) -> dict[fx.Node, float]:
        """Return the nodes that read a number out of its tensor, with its value."""
        nodes = _placeholders(self.module.graph)
        return {
            node: value
            for position, value in numbers.items()
            for node in nodes[position].users
            if node.op == "call_method" and node.target == "item"
        }

    @property
    def obstacle(self) -> str | None:
        """Why no network can stand for the graph, as far as its interface tells; else None."""
        for argument in self.arguments:
            if argument.used and argument.role == "other":
                return f"its argument {argument.name} is neither a tensor nor a size of one"
        if any(output.kind == "size" for output in self.outputs):
            return "it returns a size that it computes"
        if not any(output.kind == "computed" for output in self.outputs):
            return "it computes no tensor"
        return None

    @property
    def trains(self) -> bool:
        """Whether a batch norm or a dropout in it runs in training mode."""
        return any(_trains(node) for node in self.module.graph.nodes)

    def as_module(
        self, names: Sequence[str], constants: Sequence[Tensor], numbers: Mapping[int, float]
    ) -> fx.GraphModule:
        """Return a module of the inputs alone that returns the computed tensors as a tuple.

        Args:
            names: Dotted names of the constants in the model.
            constants: The tensors.
            numbers: The arguments that are numbers, by position.
        """
        holder = nn.Module()
        graph, source = fx.Graph(), self.module.graph
        nodes = _placeholders(source)
        value_of: dict[fx.Node, Any] = dict(self._read_numbers(numbers))
        for position in self.positions("input"):
            value_of[nodes[position]] = graph.placeholder(self.arguments[position].name)
        for position, name, tensor in zip(
            self.positions("constant"), names, constants, strict=True
        ):
            value_of[nodes[position]] = graph.get_attr(_hold(holder, name, tensor))
        for position in self.positions("size"):
            place = self.arguments[position].size_of
            if place is not None and nodes[position].users:
                of = (value_of[nodes[place[0]]], place[1])
                value_of[nodes[position]] = graph.call_function(aten.sym_size.int, of)
        for node in source.nodes:
            if node.op == "output":
                wanted = zip(_returned(node), self.outputs, strict=True)
                graph.output(tuple(value_of[v] for v, o in wanted if o.kind == "computed"))
            elif node.op != "placeholder" and node not in value_of:
                _share(self.module, holder, node)
                value_of[node] = graph.node_copy(node, lambda n: value_of[n])
        return fx.GraphModule(holder, graph)


def _is_last(identity: Any) -> bool:
    number = identity.frame_compile_id
    return number is not None and number + 1 >= torch._dynamo.config.recompile_limit


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _source(node: fx.Node) -> str:
    """Return Dynamo's expression for an argument."""
    source = getattr(node, "_dynamo_source", None)
    if source is None and (argument := node.meta.get("grapharg")) is not None:
        source = argument.source
    if source is None:
        return node.name
    return _name(source)


def _name(source: Any) -> str:
    return source.name() if callable(source.name) else str(source.name)


def _arguments(nodes: Sequence[fx.Node], examples: Sequence[Any]) -> tuple[Argument, ...]:
    sources = [_source(node) for node in nodes]
    modules = {_base(source) for source in sources if _STATE.search(source)}
    places = _places(nodes, examples)
    found = []
    for node, source, example in zip(nodes, sources, examples, strict=True):
        used = bool(node.users)
        if isinstance(example, Tensor):
            held = isinstance(example, nn.Parameter) or _base(source) in modules
            steps = _steps(source)
            if held and _is_number(node):
                found.append(Argument(role="number", name=".".join(steps)))
            elif held:
                found.append(Argument(role="constant", name=".".join(steps) or _base(source)))
            else:
                found.append(Argument(role="input", name="_".join([_base(source), *steps])))
        elif (place := places.get(str(node.meta.get("example_value")))) is not None:
            found.append(Argument(role="size", name=source, size_of=place, used=used))
        else:
            found.append(Argument(role="other", name=source, used=used))
    return tuple(found)


def _is_number(node: fx.Node) -> bool:
    """Tell whether an argument is a Python float that Dynamo passes as a tensor, new each time."""
    argument = node.meta.get("grapharg")
    return argument is not None and argument.pass_arg_as_tensor and not argument.is_tensor


def _places(nodes: Sequence[fx.Node], examples: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Return where each symbol is the size of a tensor: position of the argument, dimension."""
    places: dict[str, tuple[int, int]] = {}
    for position, (node, example) in enumerate(zip(nodes, examples, strict=True)):
        value = node.meta.get("example_value")
        if not isinstance(example, Tensor) or not isinstance(value, Tensor):
            continue
        for dimension, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                places.setdefault(str(size), (position, dimension))
    return places


def _base(source: str) -> str:
    match = _BASE.match(source)
    return match[1] if match else source


def _steps(source: str) -> list[str]:
    """``L['self']._modules['conv1']._parameters['weight']`` → conv1, weight; ``L['x']`` → none."""
    steps = ["".join(step) for step in _STEP.findall(_BASE.sub("", source))]
    return [re.sub(r"\W", "_", step) for step in steps if step]


def _break_reason(module: fx.GraphModule) -> str:
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    lines = [f" ({frame.filename}:{frame.lineno})" for frame in reason.user_stack[-1:]]
    return "".join([reason.reason.strip().partition("\n")[0], *lines])


def _returned(output: fx.Node) -> Sequence[Any]:
    return output.args[0] if isinstance(output.args[0], (tuple, list)) else [output.args[0]]


def _outputs(graph: fx.Graph, nodes: Sequence[fx.Node]) -> tuple[Output, ...]:
    final = next(node for node in graph.nodes if node.op == "output")
    found = []
    for value in _returned(final):
        if not isinstance(value, fx.Node):
            found.append(Output(kind="plain", value=value))
        elif value in nodes:
            found.append(Output(kind="argument", value=nodes.index(value)))
        else:
            tensor = isinstance(value.meta.get("example_value"), Tensor)
            found.append(Output(kind="computed" if tensor else "size"))
    return tuple(found)


def _settings(node: fx.Node, value_of: Mapping[fx.Node, float]) -> tuple[str, ...]:
    """Return the arguments that are neither nodes nor whole numbers."""
    given = (*node.args, *node.kwargs.values())
    plain = (value_of.get(v, v) if isinstance(v, fx.Node) else v for v in given)
    return tuple(repr(v) for v in plain if isinstance(v, (float, bool, str, torch.dtype)))


def _named(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _trains(node: fx.Node) -> bool:
    place = {nn.functional.batch_norm: 5, nn.functional.dropout: 2}.get(node.target)
    if place is None:
        return False
    values: Mapping[str, Any] = node.kwargs
    return bool(node.args[place] if len(node.args) > place else values.get("training", False))


def _hold(holder: nn.Module, name: str, tensor: Tensor) -> str:
    """Register a tensor under a dotted name, which may be taken; return the name it got."""
    *path, leaf = name.split(".")
    owner = holder
    for part in path:
        inner = owner._modules.get(part)
        if inner is None:
            owner.add_module(part, inner := nn.Module())
        owner = inner
    while hasattr(owner, leaf):
        leaf += "_"
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)
    return ".".join([*path, leaf])


def _share(source: nn.Module, holder: nn.Module, node: fx.Node) -> None:
    """Let the new module have what a node of the old one reads from it."""
    if node.op in ("get_attr", "call_module"):
        first = str(node.target).partition(".")[0]
        if not hasattr(holder, first):
            setattr(holder, first, getattr(source, first))
