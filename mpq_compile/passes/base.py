"""What every pass shares: the runner, and small edits of an FX graph."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mpq_compile.errors import CaptureError

KEPT_META = ("stack_trace", "nn_module_stack", "val")


class Pass(Protocol):
    """A graph rewrite: a frozen dataclass with a ``name``; its fields are its options."""

    @property
    def name(self) -> str: ...

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule: ...


def run_passes(module: fx.GraphModule, passes: Sequence[Pass]) -> fx.GraphModule:
    """Copy ``module`` once, apply the passes in order and lint after each.

    With ``MPQ_DUMP`` set to a folder, the graph after each pass is written there.
    """
    module = copied(module)
    for index, step in enumerate(passes):
        module = step(module)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
        _dump(module, f"{index:02d}_{step.name}")
    return module


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """Return a deep copy, without what torch says to its own authors about copying its specs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
        return copy.deepcopy(module)


def _dump(module: fx.GraphModule, name: str) -> None:
    folder = os.environ.get("MPQ_DUMP")
    if not folder:
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.txt").write_text(f"{module.graph}\n", encoding="utf-8")


def is_call(node: object, *targets: object) -> bool:
    """Tell whether ``node`` calls one of ``targets`` (compared by identity, never by name)."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def target_name(node: fx.Node) -> str:
    """Return the name of what ``node`` calls: ``aten.softmax.int``, or that of our function."""
    is_aten = isinstance(node.target, torch._ops.OpOverload)
    return str(node.target) if is_aten else getattr(node.target, "__name__", str(node.target))


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the single user of ``node``, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def argument(node: fx.Node, index: int, name: str, default: object = None) -> object:
    """Return an argument of an ATen call, by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def constant(module: fx.GraphModule, node: object) -> Tensor | None:
    """Return the tensor of a ``get_attr`` node, or None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def sizes_of(node: object) -> list[Any] | None:
    """Return the sizes of what a node gives, symbols where they are free; None for no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return list(value.shape) if isinstance(value, Tensor) else None


def add_constant(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Register ``value`` as a buffer (dots allowed in ``name``) and return its node."""
    parts = name.split(".")
    owner: nn.Module = module
    for part in parts[:-1]:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    leaf, taken = parts[-1], 1
    while hasattr(owner, leaf):
        taken += 1
        leaf = f"{parts[-1]}_{taken}"
    owner.register_buffer(leaf, value.detach().clone())
    with module.graph.inserting_before(before):
        return module.graph.get_attr(".".join([*parts[:-1], leaf]))


def replace(
    module: fx.GraphModule, node: fx.Node, target: object, args: tuple[object, ...]
) -> fx.Node:
    """Put a call of ``target`` where ``node`` stands; its source line and value stay known."""
    with module.graph.inserting_before(node):
        new = module.graph.call_function(target, args)
    new.meta.update({k: node.meta[k] for k in KEPT_META if k in node.meta})
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def call(module: fx.GraphModule, before: fx.Node, target: object, *args: Any) -> fx.Node:
    """Emit a call before a node; its value is known where those of its arguments are."""
    with module.graph.inserting_before(before):
        node = module.graph.call_function(target, args)
    values = [arg.meta.get("val") for arg in node.all_input_nodes]
    if all(value is not None for value in values):
        modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
        if not modes and any(isinstance(value, torch.SymInt) for value in values):
            # A constant in as many copies as a size that is free.
            around = before.meta.get("val")
            modes = [around.fake_mode] if isinstance(around, FakeTensor) else []
        node.meta["val"] = target(*fx.map_arg(args, lambda arg: _as_fake(arg, modes)))  # type: ignore[operator]
    return node


def _as_fake(node: fx.Node, modes: Sequence[FakeTensorMode]) -> Any:
    """Return a node's value as what it is computed with: without data where others have none."""
    value = node.meta["val"]
    real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
    return modes[0].from_tensor(value) if real and modes else value


class ValueRecorder(fx.Interpreter):
    """Runs a graph and keeps, for each node, what ``keep`` returns of its value."""

    def __init__(self, module: fx.GraphModule, keep) -> None:
        super().__init__(module)
        self.keep = keep
        self.kept: dict[str, object] = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        self.kept[node.name] = self.keep(node, value)
        return value


def value_shapes(
    module: fx.GraphModule, inputs: Sequence[Tensor]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor of the graph for these inputs, by node name."""
    recorder = ValueRecorder(
        module, lambda _, v: (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else None
    )
    with torch.no_grad():
        try:
            recorder.run(*inputs)
        except Exception as error:
            raise CaptureError(
                "the graph does not run on these inputs",
                expected="inputs of the example's shapes",
                found=f"{type(error).__name__}: {str(error).strip()[:300]}",
                remedy="pass inputs like the example inputs",
            ) from error
    return {name: kept for name, kept in recorder.kept.items() if kept is not None}  # type: ignore[misc]
