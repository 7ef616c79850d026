"""Buffers of a model as they were before it ran on data that its user did not call it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def buffers_kept(model: nn.Module | None) -> Iterator[None]:
    """Put back what runs within the block write into buffers, or put in their place.

    A counter or a cache would otherwise begin with what calibration left there.
    """
    modules = () if model is None else tuple(model.modules())
    held = [
        (module, name, buffer, buffer.clone(), None if buffer.is_inference() else buffer._version)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, before, version in held:
            module._buffers[name] = buffer
            # A write of the same values would count as a change all the same.
            if version is None or buffer._version != version:
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(before)
