"""Frames side by side: equal to slices that are stacked, in every format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import call
from tiers import DISTINCT_TIERS

from mpq_compile.kernels import frames
from mpq_compile.kernels.frames import FramesWorkload
from mpq_compile.passes import ops

# Taps, stride, dilation, before, behind, groups.
WINDOWS = [
    (3, 1, 1, 1, 1, 1),
    (3, 2, 1, 1, 1, 1),
    (2, 1, 3, 0, 2, 2),
    (1, 2, 1, 0, 0, 1),
    (5, 1, 1, 4, 0, 8),
    (3, 1, 1, -1, -2, 1),
]
TYPES = {"u8": torch.uint8, "bf16": torch.int16, "fp32": torch.float32}


@DISTINCT_TIERS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: "_".join(map(str, w)))
def test_equals_stacked_slices(window, dtype, tier):
    taps, stride, dilation, before, behind, groups = window
    for batch, time, pixels, channels in ((1, 7, 12, 8), (2, 8, 5, 72), (3, 6, 9, 40)):
        generator = torch.Generator().manual_seed(time)
        x = torch.randint(0, 200, (batch * time, channels, pixels, 1), generator=generator)
        x = x.to(TYPES[dtype])
        fill = 17 if dtype == "u8" else 0
        span = (time, taps, stride, dilation, before, behind, groups)
        expected = ops.frames_beside(x, *span, fill=fill)
        work = FramesWorkload(
            batch=batch, time=time, frames=len(expected) // batch, taps=taps, stride=stride,
            dilation=dilation, before=before, groups=groups, pixels=pixels, channels=channels,
            dtype=dtype,
        )  # fmt: skip
        rows = x[..., 0].transpose(1, 2).contiguous().flatten().numpy()
        rows = rows.view(np.uint16) if dtype == "bf16" else rows
        function = frames.generate(work, tier, 2)
        out = np.zeros(expected.numel(), rows.dtype)
        found = call(function, tier, [rows, np.array([fill], np.int32)], out)
        wanted = expected[..., 0].transpose(1, 2).contiguous().flatten().numpy()
        assert np.array_equal(found, wanted.view(rows.dtype))
