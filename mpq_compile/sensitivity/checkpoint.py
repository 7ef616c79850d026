"""Finished slices of a pass on disk: what was stopped goes on, and what is complete is not redone.

A pass over ImageNet samples takes an hour. Each finished slice is one file of arrays in a folder
named by a hash of all that it depends on: code, network, weights, ranges, data, candidates and
options. A complete pass stays for plans with other budgets, unless it is large or
``MPQ_EVALUATIONS`` is 0; what nobody took up again goes after a month. Slices that took no time
are not written. Without a cache folder nothing is kept.
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

from mpq_compile.calibrate import Batch
from mpq_compile.errors import ProfileError
from mpq_compile.lock import make_cache_dir
from mpq_compile.memo import evaluations_dir
from mpq_compile.passes.network import Network
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.slices import Slice

log = logging.getLogger(__name__)

# What takes less is sooner done again than explained.
WORTH_S = 2.0
_FORGOTTEN_S = 30 * 24 * 3600.0
# A complete pass of more bytes is not kept: a cache folder is no place for gigabytes.
_LARGE = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The folder of one pass; it is made when the first part of it is saved."""

    folder: Path

    @classmethod
    def open(cls, key: str, kind: str = "sensitivity") -> Checkpoint | None:
        """Return the checkpoint of a pass of some kind, or None where there is no cache folder."""
        try:
            root = make_cache_dir() / kind
        except ProfileError as error:
            log.info("no cache folder, so nothing can be resumed: %s", error.message)
            return None
        _forget(root)
        with suppress(OSError):
            os.utime(root / key)  # taken up again
        return cls(folder=root / key)

    def load(self, index: int | str) -> dict[str, Tensor] | None:
        """Return what was saved of a part; None where nothing was, or it cannot be read."""
        try:
            with np.load(self._file(index), allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]) for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, index: int, results: Mapping[str, Tensor], took_s: float) -> None:
        """Write the results of a slice, where they took long enough."""
        if took_s >= WORTH_S:
            self.keep(index, results)

    def keep(self, index: int | str, results: Mapping[str, Tensor]) -> None:
        """Write the results of a part, whole or not at all, however little time they took."""
        arrays: dict[str, Any] = {name: value.numpy() for name, value in results.items()}
        unfinished = self._file(index).with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as stream:
                np.savez_compressed(stream, **arrays)
            unfinished.replace(self._file(index))
        except OSError as error:
            log.warning("what was computed could not be kept: %s", error)

    def finish(self) -> None:
        """Leave a complete pass for those who ask for it again, unless that is not wanted."""
        sizes = [path.stat().st_size for path in self.folder.glob("*.npz")]
        if evaluations_dir() is None or sum(sizes) > _LARGE:
            self.clear()

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int | str) -> Path:
        return self.folder / f"{index}.npz"


def _forget(root: Path) -> None:
    oldest = time.time() - _FORGOTTEN_S
    with suppress(OSError):
        for folder in root.iterdir():
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def run_key(metric: str, graph: QuantizedGraph, slices: Sequence[Slice], choices: Choices) -> str:
    """Return the hash of everything that the results of a pass depend on."""
    calibration = graph.calibration
    ranges = {
        name: (h.minimum, h.maximum, h.low, h.width, h.counts.tobytes())
        for name, h in calibration.histograms.items()
    }
    choice = {site: list(names) for site, names in choices.items()}
    digest = network_hash(("sensitivity", "quant", "passes"), graph.network)
    observers = calibration.observer, sorted(calibration.chosen.items())
    text = (metric, choice, observers, ranges, str(graph.module.graph))
    digest.update(repr(text).encode())
    for where, weight in sorted(calibration.weights.items(), key=lambda item: repr(item[0])):
        _update(digest, where, weight.codes, weight.scale)
    for where, fit in sorted(calibration.fits.items(), key=lambda item: repr(item[0])):
        _update(digest, where, fit.gain, fit.shift)
    for part in slices:
        _update(digest, part.size, *part.batch.inputs, part.batch.labels)
    return digest.hexdigest()[:32]


def data_key(folders: Sequence[str], network: Network, batches: Sequence[Batch]) -> str:
    """Return the hash of a network, the inputs of its data, and the code of these folders."""
    digest = network_hash(folders, network)
    for batch in batches:
        _update(digest, len(batch.inputs), *batch.inputs)
    return digest.hexdigest()[:32]


def network_hash(folders: Sequence[str], network: Network) -> hashlib._Hash:
    """Return the hash of a network with its constants, torch, and the code of these folders."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for folder in folders:
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    _update(digest, (torch.__version__, str(network.module.graph)))
    _update(digest, *network.constants().values())
    return digest


def _update(digest: hashlib._Hash, *values: object) -> None:
    for value in values:
        if isinstance(value, Tensor):
            array = value.detach().contiguous()
            digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
