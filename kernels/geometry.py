"""Normal form of every matrix multiply: runs of contiguous input under a window. No tvm, no NumPy.

The accumulator of one output pixel is a sum over ``runs``: pieces of the (padded) input that are
contiguous in memory, each against a contiguous piece of the weights. In an ungrouped convolution
without horizontal dilation a run is a whole kernel row, KW·C elements, so that layers of 1 or 3
channels read contiguously too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import FEW_ROWS, ConvWorkload, LinearWorkload, Workload

# Most dot product steps in an AMX tile of k.
TILE_STEPS = 16
# Rows of a full tile, and elements of k in one of 64 bytes.
TILE_ROWS = 16
TILE_DEPTH = {"int8": 64, "bf16": 32}
# Elements of k in one row of an operand of usmmla or bfmmla: two rows of 8 bytes.
MATRIX_DEPTH = {"int8": 8, "bf16": 4}
# Bits of weights whose products with u8 can be summed in 16 bits, and elements of k a step.
NARROW_BITS, NARROW_GROUP = 4, 4


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """An implicit GEMM. Strides are in elements of the padded NHWC input.

    Args:
        padding: (top, left, bottom, right); negative numbers crop.
        runs: Number of runs, (outer, inner).
        run_strides: Distance between outer and between inner runs.
        run: Contiguous elements of one run.
        scale_groups: Weight scales per output; above 1, one for each outer run.
    """

    batch: int
    height: int
    width: int
    channels: int
    padding: tuple[int, int, int, int]
    input_dilation: tuple[int, int]
    padded_height: int
    padded_width: int
    out_height: int
    out_width: int
    stride: tuple[int, int]
    groups: int
    group_inputs: int
    group_outputs: int
    runs: tuple[int, int]
    run_strides: tuple[int, int]
    run: int
    scale_groups: int = 1

    @property
    def row_size(self) -> int:
        """Elements of one row of the padded input."""
        return self.padded_width * self.channels

    @property
    def window_rows(self) -> int:
        """Rows of the padded input under one row of the output."""
        return (self.runs[0] - 1) * self.run_strides[0] // self.row_size + 1

    @property
    def out_channels(self) -> int:
        """Channels of the output, all groups."""
        return self.groups * self.group_outputs

    def is_padded(self) -> bool:
        """Tell whether the padded input differs from the input."""
        return any(self.padding) or self.input_dilation != (1, 1)


def is_depthwise(workload: Workload) -> TypeGuard[ConvWorkload]:
    """Tell whether each output channel reads exactly one input channel of its own."""
    return (
        isinstance(workload, ConvWorkload)
        and workload.groups == workload.in_channels == workload.out_channels > 1
    )


def geometry(workload: Workload) -> Geometry:
    """Return the implicit GEMM of a workload.

    A depthwise convolution counts as one group of runs of one element.
    """
    if isinstance(workload, LinearWorkload):
        return _linear_geometry(workload)
    if workload.bordered_input:
        workload = replace(
            workload,
            height=workload.padded_height,
            width=workload.padded_width,
            padding=(0, 0, 0, 0),
            bordered_input=False,
        )
    if is_depthwise(workload):
        shape = _conv_geometry(workload)
        return replace(shape, groups=1, group_outputs=shape.channels)
    if _is_pointwise(workload):
        pixels = workload.batch * workload.height * workload.width
        return _rows_geometry(pixels, workload.in_channels, workload.out_channels)
    return _conv_geometry(workload)


def _is_pointwise(conv: ConvWorkload) -> bool:
    same = (1, 1)
    return (
        conv.kernel == same
        and conv.stride == same
        and conv.input_dilation == same
        and not any(conv.padding)
        and conv.groups == 1
    )


def _linear_geometry(linear: LinearWorkload) -> Geometry:
    return _rows_geometry(
        linear.rows, linear.in_features, linear.out_features, linear.weight_groups
    )


def _rows_geometry(rows: int, inputs: int, outputs: int, scale_groups: int = 1) -> Geometry:
    """A linear layer is a 1×1 convolution over an image one pixel wide."""
    size = inputs // scale_groups
    return Geometry(
        batch=1,
        height=rows,
        width=1,
        channels=inputs,
        padding=(0, 0, 0, 0),
        input_dilation=(1, 1),
        padded_height=rows,
        padded_width=1,
        out_height=rows,
        out_width=1,
        stride=(1, 1),
        groups=1,
        group_inputs=inputs,
        group_outputs=outputs,
        runs=(scale_groups, 1),
        run_strides=(size, 0),
        run=size,
        scale_groups=scale_groups,
    )


def _conv_geometry(conv: ConvWorkload) -> Geometry:
    channels = conv.in_channels
    inputs = channels // conv.groups
    folded = conv.groups == 1 and (conv.dilation[1] == 1 or conv.kernel[1] == 1)
    taps = conv.kernel[1]
    return Geometry(
        batch=conv.batch,
        height=conv.height,
        width=conv.width,
        channels=channels,
        padding=conv.padding,
        input_dilation=conv.input_dilation,
        padded_height=conv.padded_height,
        padded_width=conv.padded_width,
        out_height=conv.out_height,
        out_width=conv.out_width,
        stride=conv.stride,
        groups=conv.groups,
        group_inputs=inputs,
        group_outputs=conv.out_channels // conv.groups,
        runs=(conv.kernel[0], 1 if folded else taps),
        run_strides=(
            conv.dilation[0] * conv.padded_width * channels,
            0 if folded else conv.dilation[1] * channels,
        ),
        run=taps * inputs if folded else inputs,
    )


def k_group(workload: Workload, tier: Tier) -> int:
    """Return the input elements that one step of the dot product consumes."""
    if is_depthwise(workload):
        return 1
    if uses_matrix_products(workload, tier):
        return MATRIX_DEPTH[workload.compute]
    if sums_narrow(workload, tier):
        return NARROW_GROUP
    if workload.compute == "int8":
        return tier.k_group
    return 2 if uses_bf16_dot(workload, tier) else 1


def uses_bf16_dot(workload: Workload, tier: Tier) -> bool:
    """Tell whether pairs of bf16 are multiplied; converting int8 weights pays from a few rows."""
    if not tier.bf16_dot or is_depthwise(workload):
        return False
    if workload.compute == "weight_only":
        return not isinstance(workload, LinearWorkload) or workload.rows > FEW_ROWS
    return workload.compute == "bf16"


def uses_tiles(workload: Workload, tier: Tier) -> bool:
    """Tell whether a workload runs on AMX tiles: enough pixels, channels and contiguous input.

    A tile takes as long with few bytes of k as with 64; below a quarter of them, and below one
    vector of channels or eight pixels, vpdpbusd is as fast.
    """
    if tier.dot != "amx" or workload.compute not in TILE_DEPTH or is_depthwise(workload):
        return False
    shape, depth = geometry(workload), TILE_DEPTH[workload.compute]
    if isinstance(workload, LinearWorkload) and (workload.rows < 16 or workload.group_size):
        return False
    pixels = shape.out_height * shape.out_width
    return shape.group_outputs >= tier.lanes and pixels >= 8 and 4 * shape.run >= depth


def uses_matrix_products(workload: Workload, tier: Tier) -> bool:
    """Tell whether a workload runs on usmmla or bfmmla, which multiply pairs of pixels: as many
    instructions as a dot product for one pixel, half as many for two.

    Few-row integer linears read packed codes instead, and weights scaled by groups need their
    sums lane by lane.
    """
    offered = {"int8": tier.dot == "usmmla", "bf16": tier.bf16_matrix}
    if not offered.get(workload.compute) or is_depthwise(workload):
        return False
    if isinstance(workload, LinearWorkload):
        fewest = FEW_ROWS if workload.compute == "int8" else 1
        return workload.rows > fewest and not workload.group_size
    return workload.batch * workload.out_height * workload.out_width > 1


def sums_narrow(workload: Workload, tier: Tier) -> bool:
    """Tell whether a workload's products are summed in 16 bits, twice as fast as in 32."""
    if workload.compute != "int8" or workload.weight_bits > NARROW_BITS or is_depthwise(workload):
        return False
    few = isinstance(workload, LinearWorkload) and workload.rows <= FEW_ROWS
    return tier.narrow_sums and not few


def padded_run(workload: Workload, tier: Tier) -> int:
    """Return the elements of a run of weights, rounded up to whole dot product steps."""
    step, run = k_group(workload, tier), geometry(workload).run
    if uses_tiles(workload, tier):
        step *= tile_steps(workload, tier)
    return -(-run // step) * step


def tile_steps(workload: Workload, tier: Tier) -> int:
    """Return the dot product steps in each tile of a run: the fewest tiles, as even as possible.

    Tiles take as long whatever they hold, but a short one loads faster, and reads less past the end
    of the input.
    """
    steps = -(-geometry(workload).run // k_group(workload, tier))
    return -(-steps // -(-steps // TILE_STEPS))


def reads_past_its_end(workload: Workload, tier: Tier) -> bool:
    """Tell whether the last step of a kernel reads more input than there is: it needs a copy."""
    shape = geometry(workload)
    if is_depthwise(workload):
        return shape.channels < tier.lanes
    return padded_run(workload, tier) > shape.run


def vector_starts(outputs: int, lanes: int) -> list[int]:
    """Return the first channel of each vector of a group of ``outputs`` channels.

    The last vector moves back to end with the group and computes a few channels twice, so that
    every store is whole; only a group narrower than one vector is stored in part.
    """
    if outputs < lanes:
        return [0]
    return [min(start, outputs - lanes) for start in range(0, outputs, lanes)]
