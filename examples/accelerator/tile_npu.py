"""How long tile_npu takes for a layer. Here a simulator counts cycles."""

import math

from mpq_compile import Workload

CLOCK_HZ = 500e6
SIDE = 32  # multipliers along rows and columns
BYTES_PER_CYCLE = 8  # to and from the main memory
START_CYCLES = 400  # to read a layer's descriptor


class TileNpu:
    version = "1"

    def measure(self, workload: Workload) -> float:
        """Return the seconds of one run of the layer."""
        cycles = START_CYCLES + max(self.multiplying(workload), self.moving(workload))
        return cycles / CLOCK_HZ

    def multiplying(self, workload: Workload) -> int:
        outputs = workload.weight_shape[0]
        positions = math.prod(workload.output_shape) // outputs
        depth = workload.macs // (positions * outputs)
        tiles = math.ceil(depth / SIDE) * math.ceil(outputs / SIDE)
        # Two products at once where both operands have four bits.
        pairs = 2 if max(workload.weight_bits, workload.activation_bits) <= 4 else 1
        return tiles * math.ceil(positions / pairs)

    def moving(self, workload: Workload) -> int:
        cells = math.prod(workload.input_shape) + math.prod(workload.output_shape)
        moved = workload.weight_bytes + cells * workload.activation_bits // 8
        return math.ceil(moved / BYTES_PER_CYCLE)
