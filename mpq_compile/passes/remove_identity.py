"""Drop what does nothing at inference: dropout, copies, whole slices, casts and views to self."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import argument, is_call

aten = torch.ops.aten
_ALWAYS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
)
# Checks of what holds for the example inputs; they have no result.
_CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
)
# Casts, also to a device or a layout; they do something where the dtype changes.
_CASTS = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
)
_VIEWS = (aten.reshape.default, aten.view.default)
_WHOLE = 2**62


@dataclass(frozen=True, kw_only=True)
class RemoveIdentity:
    """Replace identities by their input; drop assertions."""

    name: str = "remove_identity"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, *_CHECKS):
                module.graph.erase_node(node)
            elif _is_identity(node):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
        return module


def _is_identity(node: fx.Node) -> bool:
    if is_call(node, *_ALWAYS):
        return True
    if is_call(node, aten.slice.Tensor):
        start = argument(node, 2, "start")
        end, step = argument(node, 3, "end"), argument(node, 4, "step", 1)
        return start in (None, 0) and (end is None or end_is_whole(end)) and step == 1
    if is_call(node, *_CASTS):
        value, source = node.meta.get("val"), node.args[0]
        before = source.meta.get("val") if isinstance(source, fx.Node) else None
        return value is not None and before is not None and value.dtype == before.dtype
    if is_call(node, *_VIEWS):
        shapes = [_shape(node), _shape(node.args[0])]
        return shapes[0] is not None and shapes[0] == shapes[1]
    return False


def _shape(node: Any) -> list[str] | None:
    """Return the sizes of a tensor as text, in which equal symbols are equal."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else None


def end_is_whole(end: object) -> bool:
    """Tell whether a slice's end is the 'to the end' constant."""
    return isinstance(end, int) and end >= _WHOLE
