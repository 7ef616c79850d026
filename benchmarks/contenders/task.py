"""What contenders are given, and what they give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_nets import PeerNet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Samples that a quantizer sees, and samples on which outputs are compared.
CALIBRATION, COMPARED = 64, 32


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A contender that is ready.

    Args:
        run: Takes the float32 input, contiguous, and returns the float32 output.
        example: What is timed.
        compared: Inputs on which the output is compared with float.
        repeats: How often one run does what is timed; times are divided by it.
    """

    run: Callable[[Tensor], Any]
    example: Tensor
    compared: tuple[Tensor, ...] = ()
    repeats: int = 1


@dataclass(frozen=True)
class NetTask:
    """Run a network at a batch.

    Args:
        net: The network's definition.
        batch: Samples of a call.
        threads: Threads of every runtime.
        folder: Where the weights stand, and exported models, shared by the contenders.
    """

    net: PeerNet
    batch: int
    threads: int
    folder: Path

    @cached_property
    def module(self) -> nn.Module:
        """The network in eval mode; built once, then read from the folder."""
        stored = self.folder / "weights.safetensors"
        if not stored.is_file():
            save_file(self.net.build().state_dict(), stored)
        module = self.net.structure()
        module.load_state_dict(load_file(stored))
        return module.eval()

    @cached_property
    def example(self) -> Tensor:
        """The input that is timed."""
        return self.net.samples(self.batch, seed=3)

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Inputs for quantizers, each of the timed shape."""
        count = max(CALIBRATION, self.batch)
        return list(self.net.samples(count, seed=4).split(self.batch))

    @cached_property
    def compared(self) -> tuple[Tensor, ...]:
        """Inputs that no quantizer has seen."""
        return self.net.samples(max(COMPARED, self.batch), seed=5).split(self.batch)

    def prepared(self, run: Callable[[Tensor], Any]) -> Prepared:
        """Return a contender of this task."""
        return Prepared(run=run, example=self.example, compared=self.compared)

    def prepared_numpy(self, run: Callable[[np.ndarray], np.ndarray]) -> Prepared:
        """Return a contender of this task that takes NumPy arrays; sharing memory is free."""
        return self.prepared(lambda x: run(x.numpy()))

    def float_outputs(self) -> list[Tensor]:
        """Return the network's outputs on ``compared``, computed in float64."""
        module = self.net.structure().eval()
        module.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            return [module.double()(x.double()) for x in self.compared]
