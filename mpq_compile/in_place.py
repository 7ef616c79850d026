"""Operators of ATen that write into one of their arguments."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def _schema(node: fx.Node) -> torch._C.FunctionSchema | None:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def is_in_place(node: fx.Node) -> bool:
    """Tell whether a node is an in-place operator: a name that ends with _, and a first argument
    that is written."""
    schema = _schema(node)
    if schema is None or not schema.arguments or not schema.name.endswith("_"):
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    schema = _schema(node)
    aliases = [value.alias_info for value in schema.returns] if schema else []
    return any(alias is not None and not alias.is_write for alias in aliases)


def writes_into_alias(node: fx.Node) -> bool:
    """Tell whether an in-place operator changes a tensor that has another name too, or that is
    read by its old name afterwards, as in ``x[i] = y; return x``."""
    if not is_in_place(node):
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    aliased = _is_view(source) or any(_is_view(user) for user in source.users)
    read_later = any(user is not node and node < user for user in source.users)
    return aliased or read_later or source.op == "placeholder"


def written_by(node: fx.Node) -> fx.Node:
    """Return whose memory an in-place operator writes: what its first argument is a view of."""
    source = node.args[0]
    while isinstance(source, fx.Node) and (_is_view(source) or is_in_place(source)):
        source = source.args[0]
    assert isinstance(source, fx.Node)
    return source


def functional(target: Any) -> Any:
    """``aten::silu_`` → ``aten::silu``: ATen names an in-place operator's twin without the _."""
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(torch.ops.aten, name), target._overloadname)
