"""What a kernel's measurements are filed under."""

from __future__ import annotations

from mpq_compile.cost.measurement import MeasurementKey
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash
from mpq_compile.runtime.kernel_timing import Task, Workload


def kernel_candidate(workload: Workload) -> str:
    """Return the candidate whose kernel this is: several candidates may share one kernel."""
    if isinstance(workload, ConvertWorkload):
        return f"{workload.source}-{workload.target}"
    if isinstance(workload, QuantizeRowsWorkload):
        return "fp32-rows"
    if workload.compute in ("fp32", "bf16"):
        return workload.compute
    return f"w{workload.weight_bits}a{16 if workload.compute == 'weight_only' else 8}"


def key_of(task: Task, device: Device) -> MeasurementKey:
    """Return the key under which a task's time is stored; a schedule is part of the shape."""
    shape = task.workload.key
    return MeasurementKey(
        device=device.fingerprint,
        toolchain=toolchain_hash(),
        kernels=kernel_hash(),
        operator=task.operator,
        shape=shape if task.choice is None else f"{shape}/{task.choice}",
        candidate=kernel_candidate(task.workload),
    )
