"""The parts of a recording, with the batch free where it is Dynamo alone that fixed it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpq_compile.integrations.buffers import buffers_kept
from mpq_compile.integrations.part import Part, gathered
from mpq_compile.integrations.recording import Recording, recorded
from mpq_compile.integrations.running_call import RunningCall

log = logging.getLogger(__name__)


def parts_of(recording: Recording, compilation: Any, model: nn.Module | None) -> list[Part]:
    """Return the parts of a compiled model from what a recording saw of it.

    Dynamo writes a size into a graph until it has seen another one: where all calls had the same
    number of samples, the first one runs again with one more.

    Args:
        recording: Of calls of the compiled model.
        compilation: Whose parts are asked for.
        model: Its buffers are kept as they are; None for a function.
    """
    graphs = recording.seen.get(compilation, {})
    parts = gathered(graphs)
    longer = _with_one_more(recording.calls[compilation]) if any(map(_fixed, parts)) else None
    if longer is None:
        return parts
    known = set(graphs)
    recording.probing = True
    with buffers_kept(model), recorded(recording):
        try:
            longer.run(*longer.args, **longer.kwargs)
        except Exception as error:  # of any kind, from a model that fixes the batch itself
            log.debug("another batch refused: %s", error)
    for bound in set(graphs) - known:
        if not any(part.stands_for(bound, graphs[bound].example) for part in parts):
            del graphs[bound]  # no call of the user's went there
    return gathered(graphs)


def _fixed(part: Part) -> bool:
    """Tell whether a part does not run, in float, with one sample more than its example has."""
    if part.reason or part.bound.graph.obstacle or not _have_one_batch(part.example):
        return False
    try:
        with torch.no_grad():
            computed = part.bound.module.forward(*map(_one_more, part.example))
    except Exception:  # PyTorch raises several kinds for sizes that do not fit
        return True
    count = len(part.example[0])
    return any(value.dim() and len(value) == count for value in computed)


def _with_one_more(call: RunningCall) -> RunningCall | None:
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
