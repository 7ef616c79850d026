"""Frames side by side: what a convolution over time reads for one of its own frames, as channels.

``main(X, E, O)``: X is [batch·time, pixels, channels] channels-last, O [batch·frames, pixels,
taps·channels], the taps of a group together; E holds the value of frames that are not there, int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import Format
from mpq_compile.kernels.emit import (
    FORMAT_BYTES,
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    copy_span,
    fill_span,
    shared_range,
)
from mpq_compile.kernels.tier import Tier


@dataclass(frozen=True, kw_only=True)
class FramesWorkload:
    """Put ``taps`` frames side by side for each frame of the result.

    Args:
        time, frames: Frames of a sample before and after.
        stride, dilation: Frames between two results, and between two taps.
        before: Frames that are missing before the first one; negative ones are left out.
    """

    batch: int
    time: int
    frames: int
    taps: int
    stride: int
    dilation: int
    before: int
    groups: int
    pixels: int
    channels: int
    dtype: Format

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape = f"{self.batch}x{self.time}to{self.frames}x{self.pixels}x{self.channels}"
        taps = f"k{self.taps}s{self.stride}d{self.dilation}p{self.before}g{self.groups}"
        return f"frames/{shape}/{taps}/{self.dtype}"


def generate(workload: FramesWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc of a workload; all buffers flat."""
    pixels, channels, taps = workload.pixels, workload.channels, workload.taps
    rows, wide = workload.batch * workload.frames * pixels, taps * channels
    part = channels // workload.groups
    dtype = FORMAT_DTYPE[workload.dtype]
    widest = 4 * tier.lanes // FORMAT_BYTES[workload.dtype]
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        size = workload.batch * workload.time * pixels * channels
        source = T.arg("X", T.buffer((size,), dtype))
        record = T.arg("E", T.buffer((1,), "int32"))
        target = T.arg("O", T.buffer((rows * wide,), dtype))

        def row(index: Any) -> None:
            frame, pixel = T.bind(index // pixels), T.bind(index % pixels)
            sample, first = frame // workload.frames, frame % workload.frames * workload.stride
            for tap in range(taps):
                at = T.bind(first + (tap * workload.dilation - workload.before))
                start = T.bind(((sample * workload.time + at) * pixels + pixel) * channels)
                with T.If(T.And(at >= 0, at < workload.time)):
                    with T.Then():
                        for group in range(workload.groups):
                            to = index * wide + (group * taps + tap) * part
                            copy_span(target, to, source, start + group * part, part, widest)
                    with T.Else():
                        for group in range(workload.groups):
                            to = index * wide + (group * taps + tap) * part
                            fill = T.cast(record[0], dtype)
                            fill_span(target, to, fill, part, widest)

        with T.sblock("root"):
            shared_range(rows, threads if rows * wide >= PARALLEL_ELEMENTS else 1, row)
    return builder.get()
