"""The network as an ONNX file, exported once for all runtimes that read it."""

from __future__ import annotations

from pathlib import Path

import torch

from contenders.task import NetTask


def exported(task: NetTask) -> Path:
    """Return the path of the ONNX model of the timed shape."""
    path = task.folder / f"{task.net.name}.onnx"
    if not path.is_file():
        torch.onnx.export(task.module, (task.example,), str(path), dynamo=True, external_data=False)
    return path
