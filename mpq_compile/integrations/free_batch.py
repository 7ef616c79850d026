"""Whether Dynamo wrote the batch of a call into its graphs, and a call that shows it another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mpq_compile.integrations.part import Part
from mpq_compile.integrations.running_call import RunningCall


def fixes_batch(part: Part) -> bool:
    """Tell whether a part does not run, in float, with one sample more than its example has."""
    if part.reason or part.bound.graph.obstacle or not _have_one_batch(part.example):
        return False
    try:
        with torch.no_grad():
            computed = part.bound.module.forward(*map(_one_more, part.example))
    except RuntimeError:
        return True
    count = len(part.example[0])
    return any(value.dim() and len(value) == count for value in computed)


def with_one_more(call: RunningCall) -> RunningCall | None:
    """Return a call with one sample more; None where its tensors have no batch in common."""
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    if not _have_one_batch([leaf for leaf in leaves if isinstance(leaf, Tensor)]):
        return None
    longer = [_one_more(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(longer, spec)
    return replace(call, args=args, kwargs=kwargs)


def _have_one_batch(values: Sequence[Tensor]) -> bool:
    sizes = {len(value) if value.dim() else 0 for value in values}
    return len(sizes) == 1 and sizes != {0}


def _one_more(value: Tensor) -> Tensor:
    return torch.cat([value, value[:1]])
