"""Dot product steps: one class an instruction, all with the same three operations.

A step multiplies ``k_group`` input elements of one pixel with the weights of ``lanes`` output
channels and adds the products to ``lanes`` accumulators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.script import tirx as T

from mpq_compile.kernels.blocking import StepCost
from mpq_compile.kernels.emit import load, splat, vector, widen
from mpq_compile.kernels.geometry import (
    MATRIX_DEPTH,
    NARROW_GROUP,
    sums_narrow,
    uses_bf16_dot,
    uses_matrix_products,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Compute, Workload

# Cost of a broadcast beside 256-bit products. Neighbouring pixels are a multiple of a cache line
# apart: measured on Zen 3, blocks of one vector of channels, which broadcast for each product,
# take 1.35 times as long as blocks of two.
BROADCAST_256 = 1.5


@dataclass(frozen=True, kw_only=True)
class DotStep:
    """Common part of the steps: integer multiply-add on plain vectors.

    Subclasses override the three operations; ``accumulator`` is int32 or float32, ``llvm_ir``
    defines the functions that they call. Where a step ``widens``, ``input_dtype`` is not what the
    input is stored as: a task's copy of it holds what ``staged`` returns.
    """

    widens: ClassVar[bool] = False

    lanes: int
    k_group: int = 1
    input_dtype: str = "uint8"
    weight_dtype: str = "int8"
    accumulator: str = "int32"
    cost: StepCost = StepCost(dot=2)
    llvm_ir: str = ""

    @property
    def sums(self) -> int:
        """Elements of an accumulator while a block multiplies."""
        return self.lanes

    def weights(self, buffer: Any, offset: Any) -> Any:
        """Load the weights of ``lanes`` channels at element ``offset``."""
        return T.cast(load(buffer, offset, self.lanes), vector("int32", self.lanes))

    def pixel(self, buffer: Any, offset: Any) -> Any:
        """Load ``k_group`` input elements and broadcast them to all lanes."""
        return splat(T.cast(buffer[offset], "int32"), self.lanes)

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        """Return ``acc`` plus the products of ``x`` and ``w``."""
        return acc + x * w

    def staged(self, value: Any, lanes: int) -> Any:
        """Return stored input as this step reads it."""
        return value


class Vpdpbusd(DotStep):
    """AVX-512 VNNI: u8 × s8, four products a lane."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        return load(buffer, offset, 64)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 4))
        return T.reinterpret("uint8x64", T.broadcast(word, 16))

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, x, w)


class Vpmaddwd(DotStep):
    """AVX2: both operands widened to int16 (``vpmaddubsw`` would saturate)."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        return T.cast(load(buffer, offset, 16), "int16x16")

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return acc + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", x, w)


class VpmaddwdStaged(Vpmaddwd):
    """AVX2 over input that was widened to int16 once, where a pair is broadcast as it is loaded.

    Widened for each use, a pair takes two shuffles, of which Intel's processors do one a cycle
    against two of the products.
    """

    widens = True

    def pixel(self, buffer: Any, offset: Any) -> Any:
        pair = T.reinterpret("int32", load(buffer, offset, 2))
        return T.reinterpret("int16x16", T.broadcast(pair, 8))

    def staged(self, value: Any, lanes: int) -> Any:
        return T.cast(value, vector("int16", lanes))


class Vpmaddubsw(DotStep):
    """AVX2: u8 × s8 of few bits, four products a channel, summed in pairs in 16 bits."""

    @property
    def sums(self) -> int:
        return 2 * self.lanes

    def weights(self, buffer: Any, offset: Any) -> Any:
        return load(buffer, offset, 32)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 4))
        return T.reinterpret("uint8x32", T.broadcast(word, 8))

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return acc + T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", x, w)


class Sdot(DotStep):
    """NEON: s8 × s8 on x − 128; the compensation in the record holds (128 − zp)·Σw."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        return load(buffer, offset, 16)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("uint32", load(buffer, offset, 4))
        centred = T.bitwise_xor(word, T.uint32(0x80808080))
        return T.reinterpret("int8x16", T.broadcast(centred, 4))

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return T.call_llvm_pure_intrin("int32x4", name, acc, x, w)


class Usdot(Sdot):
    """NEON with i8mm: u8 × s8, so that the input is taken as it is."""

    def pixel(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("uint32", load(buffer, offset, 4))
        return T.reinterpret("uint8x16", T.broadcast(word, 4))

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        name = "llvm.aarch64.neon.usdot.v4i32.v16i8"
        return T.call_llvm_pure_intrin("int32x4", name, acc, x, w)


class MatrixStep(DotStep):
    """2 pixels × k_group inputs by k_group inputs × 2 channels.

    An accumulator holds [pixel][channel]; ``matrix_block`` pairs pixels and channels.
    """

    def weights(self, buffer: Any, offset: Any) -> Any:
        """Load the weights of two channels."""
        return load(buffer, offset, 2 * self.k_group)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        """Load the inputs of one pixel: half of an operand."""
        return load(buffer, offset, self.k_group)


class Usmmla(MatrixStep):
    """NEON with i8mm: u8 × s8, eight inputs."""

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        name = "llvm.aarch64.neon.usmmla.v4i32.v16i8"
        return T.call_llvm_pure_intrin("int32x4", name, acc, x, w)


class Bfmmla(MatrixStep):
    """NEON with bf16: four inputs. Wrapped like vdpbf16ps."""

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return T.call_pure_extern("float32x4", "mpq_bfmmla", acc, x, w)


BFMMLA_IR = """
declare <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define linkonce_odr <4 x float> @mpq_bfmmla(
  <4 x float> %acc, <8 x i16> %x, <8 x i16> %w) alwaysinline {
  %a = bitcast <8 x i16> %x to <8 x bfloat>
  %b = bitcast <8 x i16> %w to <8 x bfloat>
  %sum = call <4 x float> @llvm.aarch64.neon.bfmmla(
    <4 x float> %acc, <8 x bfloat> %a, <8 x bfloat> %b)
  ret <4 x float> %sum
}
"""


class FloatStep(DotStep):
    """float32 multiply-add; inputs may be stored as bf16, weights as bf16 or int8."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        value = load(buffer, offset, self.lanes)
        if self.weight_dtype == "int8":
            integers = T.cast(value, vector("int32", self.lanes))
            return T.cast(integers, vector("float32", self.lanes))
        return widen(value, _format(self.weight_dtype), None, self.lanes)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        return splat(widen(buffer[offset], _format(self.input_dtype), None, 1), self.lanes)


class WidenedFloatStep(FloatStep):
    """float32 multiply-add over bf16 input that was widened once."""

    widens = True

    def staged(self, value: Any, lanes: int) -> Any:
        return widen(value, "bf16", None, lanes)


class Vdpbf16ps(DotStep):
    """AVX-512 BF16: two products a lane, summed in float32.

    The instruction is wrapped in a function over integer vectors: TVM's legalization would widen
    bf16 operands to float32 before the call. LLVM inlines the wrapper.
    """

    def weights(self, buffer: Any, offset: Any) -> Any:
        return load(buffer, offset, 32)

    def pixel(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 2))
        return T.reinterpret("uint16x32", T.broadcast(word, 16))

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return T.call_pure_extern("float32x16", "mpq_dpbf16ps", acc, x, w)


DPBF16PS_IR = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
  <16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @mpq_dpbf16ps(
  <16 x float> %acc, <32 x i16> %x, <32 x i16> %w) alwaysinline {
  %a = bitcast <32 x i16> %x to <32 x bfloat>
  %b = bitcast <32 x i16> %w to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %acc, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %sum
}
"""


class Vdpbf16psIntegers(Vdpbf16ps):
    """vdpbf16ps over int8 weights, which bf16 holds exactly: converted once for a whole block."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        return T.call_pure_extern("uint16x32", "mpq_bf16_of_s8", load(buffer, offset, 32))


BF16_OF_S8_IR = """
define linkonce_odr <32 x i16> @mpq_bf16_of_s8(<32 x i8> %w) alwaysinline {
  %wide = sitofp <32 x i8> %w to <32 x float>
  %short = fptrunc <32 x float> %wide to <32 x bfloat>
  %bits = bitcast <32 x bfloat> %short to <32 x i16>
  ret <32 x i16> %bits
}
"""


def _format(dtype: str) -> str:
    return "bf16" if dtype == "uint16" else "fp32"


def dot_step(workload: Workload, tier: Tier) -> DotStep:
    """Return the step that a tier offers for a workload's compute format."""
    if uses_matrix_products(workload, tier):
        return _matrix_step(workload)
    if sums_narrow(workload, tier):
        cost = StepCost(dot=1.3, pixel=BROADCAST_256, spare=2)
        return Vpmaddubsw(lanes=8, k_group=NARROW_GROUP, cost=cost)
    step = step_of(workload.compute, tier, uses_bf16_dot(workload, tier))
    if isinstance(step, FloatStep) and step.input_dtype == "uint16":
        return WidenedFloatStep(
            lanes=step.lanes,
            input_dtype="float32",
            weight_dtype=step.weight_dtype,
            accumulator=step.accumulator,
            cost=StepCost(pixel=_broadcast(tier), weight=3),
        )
    return step


def step_of(compute: Compute, tier: Tier, bf16_dot: bool) -> DotStep:
    """Return the step of a compute format; ``bf16_dot`` multiplies bf16 in pairs."""
    if compute == "int8":
        return _integer_step(tier)
    return _bf16_step(compute) if bf16_dot else _float_step(compute, tier)


def _bf16_step(compute: Compute) -> DotStep:
    if compute == "bf16":
        return Vdpbf16ps(
            lanes=16,
            k_group=2,
            input_dtype="uint16",
            weight_dtype="uint16",
            accumulator="float32",
            cost=StepCost(pixel=1.4),
            llvm_ir=DPBF16PS_IR,
        )
    return Vdpbf16psIntegers(
        lanes=16,
        k_group=2,
        input_dtype="uint16",
        accumulator="float32",
        cost=StepCost(pixel=1.4, weight=6),
        llvm_ir=DPBF16PS_IR + BF16_OF_S8_IR,
    )


def _matrix_step(workload: Workload) -> MatrixStep:
    # LLVM loads all inputs of a step before the first product: room for those of eight pixels.
    cost = StepCost(weight=2, spare=8, pixels=2)
    depth = MATRIX_DEPTH[workload.compute]
    if workload.compute == "int8":
        return Usmmla(lanes=4, k_group=depth, cost=cost)
    return Bfmmla(
        lanes=4,
        k_group=depth,
        input_dtype="uint16",
        weight_dtype="uint16",
        accumulator="float32",
        cost=cost,
        llvm_ir=BFMMLA_IR,
    )


def _broadcast(tier: Tier) -> float:
    return BROADCAST_256 if tier.dot == "vpmaddwd" else 1


def _integer_step(tier: Tier) -> DotStep:
    if tier.dot in ("amx", "vpdpbusd"):
        return Vpdpbusd(lanes=16, k_group=4, cost=StepCost())
    if tier.dot == "vpmaddwd":
        # The sum of a product runs beside other products; a product needs a register of its own.
        cost = StepCost(dot=1.3, pixel=BROADCAST_256, weight=1.5, spare=2)
        return VpmaddwdStaged(lanes=8, k_group=2, input_dtype="int16", cost=cost)
    if tier.dot == "usmmla":
        return Usdot(lanes=4, k_group=4, cost=StepCost())
    if tier.dot == "sdot":
        return Sdot(lanes=4, k_group=4, cost=StepCost(pixel=2))
    return DotStep(lanes=tier.lanes, cost=StepCost(dot=2, pixel=2, weight=2, spare=2))


def _float_step(compute: Compute, tier: Tier) -> DotStep:
    dtypes = {
        "fp32": ("float32", "float32"),
        "bf16": ("uint16", "uint16"),
        "weight_only": ("uint16", "int8"),
    }
    inputs, weights = dtypes[compute]
    stored = inputs == "float32"
    cost = StepCost(pixel=_broadcast(tier) if stored else 2, weight=1 if stored else 2)
    return FloatStep(
        lanes=tier.lanes,
        input_dtype=inputs,
        weight_dtype=weights,
        accumulator="float32",
        cost=cost,
    )
