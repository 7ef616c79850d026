"""Layout of few-row linear layers, whose weights stay packed. Imports neither tvm nor NumPy.

Weights are codes w + 2^(b−1) of b bits in 32-bit words: ``[block][word][vector][lane]``, a word
holding 32 / b consecutive inputs of one channel. Within a word, field j of step s (bits
``32/kg·j + b·s`` upwards) is input ``s·kg + j``, where kg is the inputs that one dot product step
consumes: shifting by b·s and masking yields the operand of a step without any shuffle.

Scales of weight groups lie ``[block][group][vector][lane]``: as the codes do, so that a block reads
one stretch of memory. By rows of all channels each group's scales would be on another page.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpq_compile.kernels.geometry import geometry
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import FEW_ROWS, LinearWorkload, Workload


def reads_codes(workload: Workload) -> bool:
    """Tell whether a workload runs on the few-row kernel and its packed codes."""
    if not isinstance(workload, LinearWorkload) or workload.rows > FEW_ROWS:
        return False
    return workload.compute == "int8" or (
        workload.compute == "weight_only" and workload.weight_bits < 8
    )


@dataclass(frozen=True, kw_only=True)
class CodeLayout:
    """Shape of the packed codes.

    Args:
        bits: Bits of a code.
        k_group: Inputs of one dot product step.
        words: Words per channel and weight group.
        groups: Weight groups.
        vectors: Vectors of ``lanes`` channels.
        block: Vectors interleaved in one block; the last block holds the remainder.
        offset: What was added to a weight to make its code.
        prefetch_bytes: How far ahead the kernel prefetches.
        compensated: True where the kernel reads compensations from the record.
        sums_codes: True where it has them from the sums of the codes.
    """

    bits: int
    k_group: int
    lanes: int
    words: int
    groups: int
    vectors: int
    block: int
    offset: int
    prefetch_bytes: int
    compensated: bool = False
    sums_codes: bool = False

    @property
    def codes_per_word(self) -> int:
        """Inputs of one word."""
        return 32 // self.bits

    @property
    def steps(self) -> int:
        """Dot product steps of one word."""
        return self.codes_per_word // self.k_group

    @property
    def run(self) -> int:
        """Inputs of one weight group, rounded up to whole words."""
        return self.words * self.codes_per_word

    @property
    def size(self) -> int:
        """Bytes of all codes."""
        return 4 * self.vectors * self.groups * self.words * self.lanes

    @property
    def scale_words(self) -> int:
        """Words of the scales of all weight groups."""
        return self.vectors * self.groups * self.lanes


def code_layout(workload: LinearWorkload, tier: Tier) -> CodeLayout:
    """Return the layout of a few-row workload on a tier."""
    shape = geometry(workload)
    bits = workload.weight_bits
    vectors = -(-shape.group_outputs // tier.lanes)
    # Rows that were quantized at run time have the zero point 128, which x − 128 is centred by:
    # they need no compensation.
    shifted = workload.compute == "int8" and not workload.row_scales
    # These products are so fast that the sums of codes cost less than reading compensations.
    spare_products = tier.dot in ("amx", "vpdpbusd")
    sums_codes = shifted and spare_products and shape.scale_groups > 1
    return CodeLayout(
        bits=bits,
        k_group=_k_group(workload, tier),
        lanes=tier.lanes,
        words=-(-shape.run * bits // 32),
        groups=shape.scale_groups,
        vectors=vectors,
        block=min(vectors, _block(workload, tier)),
        offset=0 if bits == 8 and tier.has_sdot else 1 << (bits - 1),
        prefetch_bytes=tier.prefetch_bytes,
        compensated=shifted and not sums_codes,
        sums_codes=sums_codes,
    )


def _k_group(workload: LinearWorkload, tier: Tier) -> int:
    if workload.compute == "int8":
        return tier.k_group
    return 2 if tier.bf16_dot else 1


def _block(workload: LinearWorkload, tier: Tier) -> int:
    """Vectors whose accumulators, one for each row, fit half of the registers."""
    accumulators = 2 if workload.group_size else 1
    return max(1, min(8, tier.registers // 2 // (workload.rows * accumulators)))
