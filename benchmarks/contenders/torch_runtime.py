"""PyTorch: eager, Inductor with frozen weights, Inductor int8 by torchao's x86 quantizer."""

from __future__ import annotations

import torch
from torch import nn

from contenders.task import NetTask, Prepared


def eager(task: NetTask) -> Prepared:
    """The module as it is."""
    return task.prepared(task.module)


def inductor(task: NetTask) -> Prepared:
    """``torch.compile`` with weights frozen into the graph."""
    return task.prepared(_frozen(task.module))


def inductor_int8(task: NetTask) -> Prepared:
    """Static int8 through export, ``X86InductorQuantizer`` and ``torch.compile``."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(task.module, (task.example,)).module()
    observed = prepare_pt2e(exported, quantizer)
    for x in task.calibration:
        observed(x)
    return task.prepared(_frozen(convert_pt2e(observed)))


def _frozen(module: nn.Module) -> nn.Module:
    # Freezing is a setting of the process: each contender has a process of its own.
    torch._inductor.config.freezing = True
    return torch.compile(module)
