"""Which ranges of activations suit a network: those that make the least noise at its outputs.

The squared error of a tensor does not tell what is lost at the outputs: after some layers errors of
rounding have cancelled and what was cut off has added up, in others it is small values that count.
So each of a few observers proposes all ranges of a width, the network is run with them on
calibration data, activations rounded and weights as they are, and the outputs choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch, spread
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import PROPOSED, fake_quantize
from mpq_compile.sensitivity.sqnr import noise_to_signal
from mpq_compile.types import Candidate

SAMPLES = 64
# Less gain than this share of the noise, 0.2 dB, may be chance: then the first of them is taken.
_GAIN = 0.05


def choose_observers(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Mapping[str, str | Sequence[str]],
) -> None:
    """Decide on the observer of each width at which ``choices`` read activations, in place.

    What was decided before stays.

    Args:
        network: The prepared network.
        calibration: Ranges of its tensors.
        batches: Calibration data; about ``SAMPLES`` samples are used.
        choices: A candidate, or several, by site.
    """
    widths = {bits for names in choices.values() for bits in _widths(names)}
    for bits in sorted(widths - set(calibration.chosen)):
        errors = output_noise(network, calibration, spread(batches, SAMPLES), bits)
        enough = min(errors.values()) / (1 - _GAIN)
        near = (name for name in PROPOSED if errors[name] <= enough)
        calibration.chosen[bits] = next(near, PROPOSED[0])


def _widths(names: str | Sequence[str]) -> set[int]:
    candidates = map(Candidate.parse, [names] if isinstance(names, str) else names)
    return {c.activation_bits for c in candidates if c.integer_compute and not c.dynamic}


def output_noise(
    network: Network, calibration: Calibration, batches: Sequence[Batch], bits: int
) -> dict[str, float]:
    """Return Σ‖y_q − y‖² / Σ‖y‖² at the float outputs for each of ``PROPOSED``.

    Each output counts alike, and so does each batch by its samples.
    """
    trials = {name: _Rounded(network, calibration.observed_by(name), bits) for name in PROPOSED}
    errors = dict.fromkeys(PROPOSED, 0.0)
    with torch.no_grad():
        for batch in track(batches, f"choose ranges of {bits} bits"):
            exact = network.module(*batch.inputs)
            for name, trial in trials.items():
                found = trial.run(*batch.inputs)
                errors[name] += batch.samples * _noise(found, exact)
    return errors


class _Rounded(fx.Interpreter):
    """Runs the float graph with the inputs of all sites rounded."""

    def __init__(self, network: Network, calibration: Calibration, bits: int) -> None:
        super().__init__(network.module)
        multiplying = {network.node_of[site.id] for site in network.sites if site.multiplies}
        self._sites, self._calibration, self._bits = multiplying, calibration, bits
        self._rounded: dict[str, Tensor] = {}

    def run(self, *inputs: Any, **options: Any) -> Any:
        self._rounded = {}
        return super().run(*inputs, **options)

    def run_node(self, node: fx.Node) -> Any:
        if node.name not in self._sites:
            return super().run_node(node)
        read = node.args[0]
        assert isinstance(read, fx.Node) and callable(node.target)
        if read.name not in self._rounded:
            qparams = self._calibration.qparams(read.name, self._bits)
            self._rounded[read.name] = fake_quantize(self.env[read], qparams)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return node.target(self._rounded[read.name], *args[1:], **kwargs)


def _noise(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = [(q, y) for q, y in zip(found, exact, strict=True) if y.is_floating_point()]
    return noise_to_signal(*zip(*pairs, strict=True)) if pairs else 0.0
