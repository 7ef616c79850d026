"""Matrix-multiply workloads: the shapes and formats that name one kernel. Imports no tvm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mpq_compile.errors import LoweringError

Compute = Literal["int8", "fp32", "bf16", "weight_only"]
Format = Literal["u8", "bf16", "fp32"]

# Rows up to which a linear layer may read packed 4- or 2-bit weights.
FEW_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class ConvWorkload:
    """A 2-D convolution over NHWC tensors with its epilogue.

    Args:
        kernel, stride, dilation: (height, width).
        padding: (top, left, bottom, right) cells around the spread input; negative ones crop.
        input_dilation: Step between input pixels once spread; a transposed convolution is a
            convolution over an input spread by its stride (``reference.stuff_and_pad``).
        compute: Format of the input and of the multiplication; int8 reads u8 codes.
        out: Format of the output.
        weight_bits: Bits that hold every weight: 8, or 4 where the tier's kernel gains by it.
        residual: Format of the tensor that the epilogue adds, shaped like the output; or None.
        bordered_input: True where the input is stored with its padding around it.
        border: (top, left, bottom, right) pixels that the kernel stores around its output, for
            the next convolution to read as padding.
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_dilation: tuple[int, int] = (1, 1)
    compute: Compute = "int8"
    weight_bits: Literal[8, 4] = 8
    out: Format = "u8"
    residual: Format | None = None
    bordered_input: bool = False
    border: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def padded_height(self) -> int:
        """Rows of the spread and padded input."""
        return (self.height - 1) * self.input_dilation[0] + 1 + self.padding[0] + self.padding[2]

    @property
    def padded_width(self) -> int:
        """Columns of the spread and padded input."""
        return (self.width - 1) * self.input_dilation[1] + 1 + self.padding[1] + self.padding[3]

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        reach = self.dilation[0] * (self.kernel[0] - 1)
        return (self.padded_height - reach - 1) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        reach = self.dilation[1] * (self.kernel[1] - 1)
        return (self.padded_width - reach - 1) // self.stride[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-adds, those with padding included."""
        taps = self.kernel[0] * self.kernel[1] * self.in_channels // self.groups
        return self.batch * self.out_height * self.out_width * self.out_channels * taps

    @property
    def input_size(self) -> int:
        """Elements of the input buffer."""
        pixels = self.height * self.width
        if self.bordered_input:
            pixels = self.padded_height * self.padded_width
        return self.batch * pixels * self.in_channels

    @property
    def output_size(self) -> int:
        """Elements of the output."""
        return self.batch * self.out_height * self.out_width * self.out_channels

    @property
    def stored_size(self) -> int:
        """Elements of the output buffer: the output and its border."""
        top, left, bottom, right = self.border
        rows, columns = self.out_height + top + bottom, self.out_width + left + right
        return self.batch * rows * columns * self.out_channels

    @property
    def alone(self) -> ConvWorkload:
        """The same work between neighbours that know nothing of each other."""
        return replace(self, bordered_input=False, border=(0, 0, 0, 0))

    @property
    def key(self) -> str:
        """Canonical text for measurement databases."""
        text = (
            f"conv_b{self.batch}_{self.height}x{self.width}x{self.in_channels}"
            f"_n{self.out_channels}_k{_join(self.kernel)}_s{_join(self.stride)}"
            f"_p{_join(self.padding)}_d{_join(self.dilation)}_g{self.groups}"
        )
        if self.input_dilation != (1, 1):
            text += f"_i{_join(self.input_dilation)}"
        if self.weight_bits < 8:
            text += f"_w{self.weight_bits}"
        if self.bordered_input:
            text += "_bordered"
        if any(self.border):
            text += f"_border{_join(self.border)}"
        return text + _formats(self.compute, self.residual, self.out)


@dataclass(frozen=True, kw_only=True)
class LinearWorkload:
    """``[rows, in_features] @ weight.T`` with its epilogue.

    Args:
        compute: int8, fp32, bf16, or ``weight_only``: bf16 input × integer weights, float32 sums.
        weight_bits: Layout of the weights that the kernel reads: 8, or 4 and 2 bits packed
            (integer weights and at most ``FEW_ROWS`` rows). With more rows 4 stands for unpacked
            weights that 4 bits hold (int8 without groups), where the tier's kernel gains by it.
        group_size: Input features that share one weight scale (integer weights only), or None.
        row_scales: True where the input's codes were made at run time: each row has a float32
            scale of its own, and the zero point 128 (int8 only).
        out: Format of the output.
        residual: Format of the tensor that the epilogue adds, shaped like the output; or None.
    """

    rows: int
    in_features: int
    out_features: int
    compute: Compute = "int8"
    weight_bits: Literal[8, 4, 2] = 8
    group_size: int | None = None
    row_scales: bool = False
    out: Format = "u8"
    residual: Format | None = None

    def __post_init__(self) -> None:
        integer = self.compute in ("int8", "weight_only")
        narrow = self.compute == "int8" and self.weight_bits == 4 and not self.group_size
        if self.weight_bits < 8 and not (integer and self.rows <= FEW_ROWS) and not narrow:
            raise LoweringError(
                "no kernel reads packed weights here",
                where=self.key,
                expected=f"integer weights and at most {FEW_ROWS} rows, or weight_bits=8",
                found=f"{self.compute}, {self.rows} rows, weight_bits={self.weight_bits}",
                remedy="unpack the weights to 8 bits",
            )
        if self.group_size and (not integer or self.in_features % self.group_size):
            raise LoweringError(
                "weights cannot be scaled by groups here",
                where=self.key,
                expected="integer weights and input features that are a multiple of the group",
                found=f"{self.compute}, {self.in_features} features in groups of {self.group_size}",
                remedy="choose another group size, or one scale per channel",
            )
        if self.row_scales and self.compute != "int8":
            raise LoweringError(
                "only codes have a scale for each row",
                where=self.key,
                expected="int8 compute",
                found=self.compute,
                remedy="leave out row_scales",
            )

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.rows * self.in_features * self.out_features

    @property
    def weight_groups(self) -> int:
        """Weight scales per output feature."""
        return self.in_features // self.group_size if self.group_size else 1

    @property
    def input_size(self) -> int:
        """Elements of the input buffer."""
        return self.rows * self.in_features

    @property
    def output_size(self) -> int:
        """Elements of the output."""
        return self.rows * self.out_features

    @property
    def stored_size(self) -> int:
        """Elements of the output buffer."""
        return self.output_size

    @property
    def alone(self) -> LinearWorkload:
        """The same work between neighbours that know nothing of each other."""
        return self

    @property
    def key(self) -> str:
        """Canonical text for measurement databases."""
        text = f"linear_m{self.rows}_k{self.in_features}_n{self.out_features}"
        if self.compute in ("int8", "weight_only"):
            text += f"_w{self.weight_bits}"
        if self.group_size:
            text += f"_q{self.group_size}"
        if self.row_scales:
            text += "_d"
        return text + _formats(self.compute, self.residual, self.out)


Workload = ConvWorkload | LinearWorkload


def _join(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _formats(compute: str, residual: str | None, out: str) -> str:
    return f"_{compute}" + (f"_r{residual}" if residual else "") + f"_{out}"
