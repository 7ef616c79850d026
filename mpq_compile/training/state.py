"""A run of training on disk: parameters, the optimizer's moments, and the step, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpq_compile.errors import PlanError

# Where the mean of a parameter over the last steps lies in the optimizer's state.
MEAN = "mean"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step", MEAN)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A safetensors file.

    Args:
        path: The file; it is replaced whole.
        run: What the run follows from; a file of another run is refused.
    """

    path: Path
    run: str

    def save(
        self, step: int, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the state after ``step`` steps."""
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(parameters):
            tensors[f"{i}.value"] = parameter.detach().contiguous()
            for name, value in optimizer.state[parameter].items():
                tensors[f"{i}.{name}"] = value.contiguous()
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, {"run": self.run, "step": json.dumps(step)})
        unfinished.replace(self.path)

    def load(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Take the state over and return its step; 0 where there is no file.

        Raises:
            PlanError: The file is damaged, or of another run.
        """
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as stored:
                about = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise self._refused("a safetensors file of this run", str(error)) from error
        if about.get("run") != self.run:
            raise self._refused(
                "a checkpoint of the same network, assignment, data and options",
                "one of another run",
            )
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"{i}.value"])
                optimizer.state[parameter] = _moments(tensors, i)
        step: int = json.loads(about["step"])
        return step

    def _refused(self, expected: str, found: str) -> PlanError:
        return PlanError(
            "the checkpoint cannot be used",
            where=str(self.path),
            expected=expected,
            found=found,
            remedy="name another file, or delete this one to begin anew",
        )


def _moments(tensors: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    names = {name: f"{i}.{name}" for name in _MOMENTS}
    return {name: tensors[key] for name, key in names.items() if key in tensors}
