"""What the processes of a pool do together: how it is asked for here, and performed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.calibration_tensors import packed, unpacked
from mpq_compile.reconstruct.per_site import reconstruct_per_site
from mpq_compile.registry import METRICS
from mpq_compile.sensitivity.base import check_table, leading, with_followers
from mpq_compile.types import SensitivityTable
from mpq_compile.workpool import Task, current_pool

Choices = Mapping[str, str | Sequence[str]]


def measured_sensitivity(
    metric: str,
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Mapping[str, Sequence[str]],
) -> SensitivityTable:
    """Return the table of a metric by name, computed by all processes of the pool.

    Raises:
        CalibrationError: It lacks a loss, or has one that is not finite.
    """
    measure, leaders = METRICS.load(metric)(), leading(network, choices)
    with current_pool().sharing(lambda: _task("sensitivity", calibration, leaders, metric)):
        table: SensitivityTable = measure(network, calibration, batches, leaders)
    check_table(table, leaders)
    return with_followers(network, table, choices)


def fitted_sites(
    network: Network, calibration: Calibration, batches: Sequence[Batch], choices: Choices
) -> None:
    """Add fits of sites to ``calibration``, computed by all processes of the pool."""
    with current_pool().sharing(lambda: _task("fit", calibration, choices)):
        reconstruct_per_site(network, calibration, batches, choices)


def perform(task: Task, network: Network, batches: Sequence[Batch]) -> None:
    """Do what another process asks for, on the same network and data."""
    calibration = unpacked(task.options["calibration"], task.tensors)
    _PERFORMED[task.name](task, network, calibration, batches)


def _task(name: str, calibration: Calibration, choices: Choices, metric: str = "") -> Task:
    described, tensors = packed(calibration)
    plain = {
        site: names if isinstance(names, str) else list(names) for site, names in choices.items()
    }
    return Task(
        name=name,
        options={"calibration": described, "choices": plain, "metric": metric},
        tensors=tensors,
    )


def _measure(
    task: Task, network: Network, calibration: Calibration, batches: Sequence[Batch]
) -> None:
    METRICS.load(task.options["metric"])()(network, calibration, batches, task.options["choices"])


def _fit(task: Task, network: Network, calibration: Calibration, batches: Sequence[Batch]) -> None:
    reconstruct_per_site(network, calibration, batches, task.options["choices"])


_PERFORMED: Mapping[str, Callable[[Task, Network, Calibration, Sequence[Batch]], None]] = {
    "sensitivity": _measure,
    "fit": _fit,
}
