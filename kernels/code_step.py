"""Dot product steps over packed weight codes: how a word becomes an operand, one class a tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import load, round_to_bf16, splat, vector, widen
from mpq_compile.kernels.gemv_layout import code_layout
from mpq_compile.kernels.microkernel import DPBF16PS_IR
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import LinearWorkload


@dataclass(frozen=True, kw_only=True)
class CodeStep:
    """Plain int32: one code a lane and step.

    Args:
        correction: What each input's total is multiplied by and subtracted: the codes' offset.
        input_dtype: How centred inputs are kept.
    """

    lanes: int
    bits: int
    correction: int
    input_dtype: str = "int32"
    accumulator: str = "int32"
    llvm_ir: str = ""

    def centred(self, value: Any, lanes: int) -> Any:
        """Return x − 128 of stored u8 inputs."""
        return T.cast(value, vector("int32", lanes)) - splat(T.int32(128), lanes)

    def stored(self, value: Any, lanes: int) -> Any:
        """Return a centred input as it is kept."""
        return T.cast(value, vector(self.input_dtype, lanes))

    def reduced(self, value: Any) -> Any:
        """Return the sum over lanes."""
        name = f"llvm.vector.reduce.add.v{self.lanes}i32"
        return T.call_llvm_pure_intrin("int32", name, value)

    def codes(self, packed: Any, step: int) -> Any:
        """Return the codes of one step from uint32 words."""
        return T.reinterpret(vector("int32", self.lanes), self._masked(packed, step, 1))

    def broadcast(self, buffer: Any, offset: Any) -> Any:
        """Return the inputs of one step in every lane."""
        return splat(buffer[offset], self.lanes)

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        """Return ``acc`` plus the products."""
        return acc + codes * x

    def ones(self) -> Any:
        """Return the inputs whose products sum the codes of a step (``CodeLayout.sums_codes``)."""
        raise NotImplementedError

    def _masked(self, packed: Any, step: int, fields: int) -> Any:
        """Shift the codes of a step down and mask ``fields`` of them in each word."""
        if self.bits * fields == 32:
            return packed
        if step:
            packed = T.shift_right(packed, splat(T.uint32(self.bits * step), self.lanes))
        mask = T.uint32(_repeated(2**self.bits - 1, fields))
        return T.bitwise_and(packed, splat(mask, self.lanes))


class VpdpbusdCodes(CodeStep):
    """AVX-512 VNNI: codes are the unsigned operand."""

    def ones(self) -> Any:
        return T.broadcast(T.int8(1), 64)

    def codes(self, packed: Any, step: int) -> Any:
        return T.reinterpret("uint8x64", self._masked(packed, step, 4))

    def broadcast(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 4))
        return T.reinterpret("int8x64", T.broadcast(word, 16))

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, codes, x)


class VpmaddwdCodes(CodeStep):
    """AVX2: two codes a lane as int16."""

    def codes(self, packed: Any, step: int) -> Any:
        return T.reinterpret("int16x16", self._masked(packed, step, 2))

    def broadcast(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 2))
        return T.reinterpret("int16x16", T.broadcast(word, 8))

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        return acc + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", codes, x)


class SdotCodes(CodeStep):
    """NEON: 4- and 2-bit codes are non-negative s8; 8-bit weights keep their sign."""

    def codes(self, packed: Any, step: int) -> Any:
        return T.reinterpret("int8x16", self._masked(packed, step, 4))

    def broadcast(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 4))
        return T.reinterpret("int8x16", T.broadcast(word, 4))

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return T.call_llvm_pure_intrin("int32x4", name, acc, codes, x)


class FloatCodes(CodeStep):
    """Weight-only: bf16 inputs widened to float32, codes converted."""

    def centred(self, value: Any, lanes: int) -> Any:
        return widen(value, "bf16", None, lanes)

    def reduced(self, value: Any) -> Any:
        total = T.Shuffle([value], [0])
        for lane in range(1, self.lanes):
            total = total + T.Shuffle([value], [lane])
        return total

    def codes(self, packed: Any, step: int) -> Any:
        return T.cast(super().codes(packed, step), vector("float32", self.lanes))


class BfloatCodes(FloatCodes):
    """Weight-only on vdpbf16ps: a mask puts codes into the mantissa of 2^b + c, exact in bf16."""

    def stored(self, value: Any, lanes: int) -> Any:
        return round_to_bf16(value, lanes)

    def codes(self, packed: Any, step: int) -> Any:
        top = 7 - self.bits
        shift = top - self.bits * step
        if shift > 0:
            packed = T.shift_left(packed, splat(T.uint32(shift), self.lanes))
        elif shift < 0:
            packed = T.shift_right(packed, splat(T.uint32(-shift), self.lanes))
        mask = _repeated((2**self.bits - 1) << top, 2)
        exponent = _repeated((127 + self.bits) << 7, 2)
        masked = T.bitwise_and(packed, splat(T.uint32(mask), self.lanes))
        word = T.bitwise_or(masked, splat(T.uint32(exponent), self.lanes))
        return T.reinterpret("uint16x32", word)

    def broadcast(self, buffer: Any, offset: Any) -> Any:
        word = T.reinterpret("int32", load(buffer, offset, 2))
        return T.reinterpret("uint16x32", T.broadcast(word, 16))

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        return T.call_pure_extern("float32x16", "mpq_dpbf16ps", acc, codes, x)


def code_step(workload: LinearWorkload, tier: Tier) -> CodeStep:
    """Return the step that a tier offers for a few-row workload."""
    layout = code_layout(workload, tier)
    lanes, bits, offset = layout.lanes, layout.bits, layout.offset
    if workload.compute == "weight_only":
        if tier.bf16_dot:
            return BfloatCodes(
                lanes=lanes, bits=bits, correction=2**bits + offset, input_dtype="uint16",
                accumulator="float32", llvm_ir=DPBF16PS_IR,
            )  # fmt: skip
        return FloatCodes(
            lanes=lanes, bits=bits, correction=offset, input_dtype="float32",
            accumulator="float32",
        )  # fmt: skip
    kinds: dict[int, tuple[type[CodeStep], str]] = {
        4: (SdotCodes if tier.has_sdot else VpdpbusdCodes, "int8"),
        2: (VpmaddwdCodes, "int16"),
        1: (CodeStep, "int32"),
    }
    kind, dtype = kinds[layout.k_group]
    return kind(lanes=lanes, bits=bits, correction=offset, input_dtype=dtype)


def _repeated(field: int, fields: int) -> int:
    """Return a word that repeats ``field`` in each of ``fields`` equal parts."""
    return sum(field << (32 // fields * i) for i in range(fields))
