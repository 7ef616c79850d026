"""A search on disk, so that one that was stopped goes on where it was: safetensors, no pickle.

The file holds every tensor that the rest of the search depends on, and in its metadata what was
searched; an epoch that was cut off is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpq_compile.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A search after an epoch: its tensors by name, and its numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def save_snapshot(path: Path, snapshot: Snapshot, search: str) -> None:
    """Write a snapshot, whole or not at all; ``search`` tells what it belongs to."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {name: value.detach().contiguous() for name, value in snapshot.tensors.items()}
    metadata = {"search": search, "numbers": json.dumps(dict(snapshot.numbers))}
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)


def load_snapshot(path: Path, search: str) -> Snapshot | None:
    """Return what was saved; None where there is no such file.

    Raises:
        PlanError: The file is no snapshot, or that of another search.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refused(path, "the checkpoint cannot be read", error) from error
    if metadata.get("search") != search:
        found = "a search of other data, options or network" if metadata else "other tensors"
        raise _refused(path, "the checkpoint is of another search", found)
    return Snapshot(tensors=tensors, numbers=json.loads(metadata["numbers"]))


def _refused(path: Path, message: str, found: object) -> PlanError:
    return PlanError(
        message,
        where=str(path),
        expected="a file that this search wrote",
        found=found,
        remedy="name another file, or remove this one to begin anew",
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an optimizer's state by name: ``prefix.PARAMETER.ENTRY``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in state.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the state that :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            index, _, name = key.removeprefix(f"{prefix}.").partition(".")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
