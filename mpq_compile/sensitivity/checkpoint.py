"""Finished slices of a pass on disk, so that a pass that was stopped goes on where it was.

A pass over ImageNet samples takes an hour. Each finished slice is one file of arrays in a folder
named by a hash of all that it depends on: code, network, weights, ranges, data, candidates and
options. The folder goes when the pass is complete; folders of passes that nobody took up again go
after a month. Slices that took no time are not written. Without a cache folder nothing is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq_compile.errors import ProfileError
from mpq_compile.lock import make_cache_dir
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.slices import Slice

log = logging.getLogger(__name__)

# What takes less is sooner done again than explained.
WORTH_S = 2.0
_FORGOTTEN_S = 30 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The folder of one pass; it is made when the first slice is saved."""

    folder: Path

    @classmethod
    def open(cls, key: str) -> Checkpoint | None:
        """Return the checkpoint of a pass, or None where there is no cache folder."""
        try:
            root = make_cache_dir() / "sensitivity"
        except ProfileError as error:
            log.info("no cache folder, so nothing can be resumed: %s", error.message)
            return None
        _forget(root)
        return cls(folder=root / key)

    def load(self, index: int) -> dict[str, Tensor] | None:
        """Return what was saved of a slice; None where nothing was, or it cannot be read."""
        try:
            with np.load(self._file(index), allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]) for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, index: int, results: Mapping[str, Tensor], took_s: float) -> None:
        """Write the results of a slice, whole or not at all."""
        if took_s < WORTH_S:
            return
        arrays: dict[str, Any] = {name: value.numpy() for name, value in results.items()}
        unfinished = self._file(index).with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as stream:
                np.savez(stream, **arrays)
            unfinished.replace(self._file(index))
        except OSError as error:
            log.warning("a finished part of the sensitivity could not be kept: %s", error)

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npz"


def _forget(root: Path) -> None:
    oldest = time.time() - _FORGOTTEN_S
    with suppress(OSError):
        for folder in root.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def run_key(metric: str, graph: QuantizedGraph, slices: Sequence[Slice], choices: Choices) -> str:
    """Return the hash of everything that the results of a pass depend on."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for folder in ("sensitivity", "quant", "passes"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    ranges = {
        name: (h.minimum, h.maximum, h.low, h.width, h.counts.tobytes())
        for name, h in graph.calibration.histograms.items()
    }
    choice = {site: list(names) for site, names in choices.items()}
    text = (metric, choice, graph.calibration.observer, ranges, str(graph.module.graph))
    digest.update(repr((torch.__version__, *text)).encode())
    for value in graph.network.module.state_dict().values():
        _update(digest, value)
    for where, fit in sorted(graph.calibration.fits.items(), key=lambda item: repr(item[0])):
        digest.update(repr(where).encode())
        for value in (fit.gain, fit.shift):
            _update(digest, value)
    for part in slices:
        for value in (*part.batch.inputs, part.batch.labels):
            _update(digest, value)
    return digest.hexdigest()[:32]


def _update(digest: hashlib._Hash, value: Tensor | None) -> None:
    if value is None:
        digest.update(b"none")
        return
    array = value.detach().contiguous()
    digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
    digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
