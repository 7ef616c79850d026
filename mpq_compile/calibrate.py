"""Graph and batches → the range of every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mpq_compile.data.batches import Batch
from mpq_compile.data.batches import read_batches as read_batches
from mpq_compile.data.wanted import MAX_BATCH as MAX_BATCH
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration, Prefix
from mpq_compile.quant.observers import Histogram

# Parts of the data that results are looked at after, to see how much they still move.
SHARES = (1 / 8, 1 / 4, 1 / 2)


def calibrate(network: Network, batches: Sequence[Batch], observer: str = "mse") -> Calibration:
    """Observe every float tensor of the prepared graph over all batches.

    Raises:
        CalibrationError: The output of a site is not finite, or a site sees no values.
    """
    histograms: dict[str, Histogram] = {}
    site_of = network.site_of

    def observe(node, value) -> None:
        seen = node.op == "get_attr" and node.name in histograms  # constants are seen once
        if node.name in site_of and not value.isfinite().all():
            raise CalibrationError(
                "the output of a site is not finite",
                where=site_of[node.name].id,
                expected="finite numbers on the calibration data",
                found=f"{int((~value.isfinite()).sum())} NaN or infinite values",
                remedy="look for samples, or for a layer before it, that overflow in float",
            )
        if isinstance(value, Tensor) and value.is_floating_point() and not seen:
            histograms.setdefault(node.name, Histogram()).observe(value)

    recorder = ValueRecorder(network.module, observe)
    read_by_sites = {network.node(name).args[0].name for name in network.node_of.values()}
    prefixes: list[Prefix] = []
    samples, marks = 0, _marks(batches)
    with torch.no_grad():
        for batch in track(batches, "calibrate"):
            recorder.run(*batch.inputs)
            samples += batch.samples
            if samples in marks:
                seen = {name: histograms[name].copy() for name in read_by_sites & set(histograms)}
                prefixes.append(Prefix(samples=samples, histograms=seen))
    _check_seen(network, histograms)
    return Calibration(
        histograms=histograms, observer=observer, samples=samples, prefixes=tuple(prefixes)
    )


def _marks(batches: Sequence[Batch]) -> set[int]:
    """Return numbers of samples after whole batches: about an eighth, a quarter and half of all."""
    ends = list(accumulate(batch.samples for batch in batches))
    shares = (ends[-1] * share for share in SHARES)
    return {max((end for end in ends if end <= share), default=0) for share in shares}


def _check_seen(network: Network, histograms: Mapping[str, Histogram]) -> None:
    """Refuse sites whose inputs or outputs hold no values, whatever the data."""
    for site in network.sites:
        node = network.node(network.node_of[site.id])
        seen = {"input": node.args[0].name} if site.multiplies else {}
        for what, name in (seen | {"output": node.name}).items():
            found = histograms.get(name)
            if found is None or found.minimum > found.maximum:
                raise CalibrationError(
                    f"a site was never executed on data: its {what} is empty",
                    where=site.id,
                    expected=f"values, of shape {list(network.shapes[name][0])} for the example",
                    found="none in any batch",
                    remedy="remove the layer, or give inputs that reach it",
                )


def hold_out(
    batches: Sequence[Batch], share: float, network: Network
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Return batches to calibrate on and others to judge by, about ``share`` of the samples.

    Every n-th sample is held out, or every n-th batch where the network fixes its batch; where
    there are too few for that, both are all.
    """
    if share <= 0:
        return tuple(batches), tuple(batches)
    every = max(2, round(1 / share))
    if network.captured.dynamic_batch and all(len(b.inputs[0]) >= every for b in batches):
        parts = [_parted(batch, every) for batch in batches]
        return tuple(kept for kept, _ in parts), tuple(held for _, held in parts)
    held = tuple(batches[every - 1 :: every])
    kept = tuple(b for i, b in enumerate(batches) if i % every != every - 1)
    return (kept, held) if held else (tuple(batches), tuple(batches))


def _parted(batch: Batch, every: int) -> tuple[Batch, Batch]:
    chosen = torch.arange(len(batch.inputs[0])) % every == every - 1

    def part(mask: Tensor) -> Batch:
        labels = None if batch.labels is None else batch.labels[mask]
        return Batch(inputs=tuple(value[mask] for value in batch.inputs), labels=labels)

    return part(~chosen), part(chosen)


def spread(batches: Iterable[Batch], samples: int) -> tuple[Batch, ...]:
    """Return the first batches that hold about ``samples`` samples."""
    chosen: list[Batch] = []
    seen = 0
    for batch in batches:
        if seen >= samples:
            break
        chosen.append(batch)
        seen += batch.samples
    return tuple(chosen)
