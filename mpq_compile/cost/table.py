"""Cost of every (site, candidate): latency from measurements or equations, and what is counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import fx

from mpq_compile.cost.analytic import analytic_latency_us, code_bytes, energy_mj, scale_bytes
from mpq_compile.cost.estimate import kernel_times
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.profile import Profile, operator_name
from mpq_compile.cost.store import Store
from mpq_compile.kernels.choice import ChoiceOf, modelled
from mpq_compile.kernels.elementwise_workload import ConvertWorkload
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.workloads import input_workload, site_workload
from mpq_compile.passes.base import constant, is_call
from mpq_compile.passes.kinds import TABLE_ENTRIES, Kind, kinds
from mpq_compile.passes.materialize_attention import added_mask_bytes
from mpq_compile.passes.network import Network
from mpq_compile.passes.ops import ALL_SITE_OPS, site_conv2d
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.types import FORMAT_WIDTH, Candidate, CostTable, Site, format_bits, storage

Choices = Mapping[str, Sequence[str]]
Siblings = Sequence[tuple[str, str, fx.Node]]
_Tasks = Mapping[tuple[str, str], Sequence[Task]]
_Changes = Mapping[tuple[str, str, str], Task]


def counted_costs(network: Network, site: Site, candidate: Candidate) -> dict[str, float]:
    """Return what needs no device: size_bytes, bops, weight_bits, peak_bytes.

    Size holds the packed weights, their scales and the bias (float32, left out where it is zero). A
    weight that several sites read is stored and counted with the first of them.
    BOPs = MACs · w · a. ``weight_bits`` = weights · bits, whose mean is ``avg_bits``. Peak is the
    site's own input, output and residual, in the format of the candidate.
    """
    node = network.node(network.node_of[site.id])
    bias_bytes = 4 * site.out_channels if network.biased(site.id) else 0
    size = bias_bytes + (0 if site.shared else code_bytes(site, candidate))
    if network.scale_owner_of[site.id] == site.id:
        size += scale_bytes(site, candidate)
    item = format_bits(storage(candidate.input_format)) / 8
    tensors = 3 if node.args[3] is not None else 2
    cells = math.prod(site.input_shape) + (tensors - 1) * math.prod(site.output_shape)
    return {
        "size_bytes": float(size),
        "bops": float(site.macs * candidate.weight_bits * candidate.activation_bits),
        "weight_bits": float(site.stored_weights * candidate.weight_bits),
        "peak_bytes": cells * item,
    }


def fixed_bytes(network: Network, choices: Choices) -> int:
    """Return the most bytes that are stored beside the sites.

    Norms and other constants stay float32; a batch norm that stands alone keeps its
    factors, and weights of one at two bits. A function of one value is a table where it gives
    codes, as it may where some site reads them.
    """
    names = {name for candidates in choices.values() for name in candidates}
    coded = any(storage(Candidate.parse(name).input_format) == "u8" for name in names)
    found = kinds(network, allow_float=True)
    total = TABLE_ENTRIES * list(found.values()).count(Kind.TABLE) if coded else 0
    total += added_mask_bytes(network, (n for n, kind in found.items() if kind is Kind.ATTENTION))
    for node in network.module.graph.nodes:
        value = constant(network.module, node)
        if value is not None and any(not is_call(user, *ALL_SITE_OPS) for user in node.users):
            total += value.numel() * value.element_size()
    return total


def analytic_table(network: Network, choices: Choices, profile: Profile) -> CostTable:
    """Return the costs of an analytic target, by its equations."""
    return described_table(network, choices, profile, partial(analytic_latency_us, profile))


def described_table(
    network: Network,
    choices: Choices,
    profile: Profile,
    latency_us: Callable[[Site, Candidate], float],
) -> CostTable:
    """Return the costs on a target that runs no network: the sum of its sites and a fixed time.

    Energy is given where the profile has figures.
    """
    costs: dict[str, dict[str, dict[str, float]]] = {}
    for site in network.sites:
        costs[site.id] = {}
        for name in choices[site.id]:
            candidate = Candidate.parse(name)
            entry = counted_costs(network, site, candidate)
            entry["latency_us"] = latency_us(site, candidate)
            if profile.energy is not None:
                entry["energy_mj"] = energy_mj(profile, site, candidate, entry["latency_us"])
            costs[site.id][name] = entry
    overhead = {
        "size_bytes": float(fixed_bytes(network, choices)),
        "latency_us": profile.overhead_us,
    }
    return CostTable(costs=costs, overhead=overhead)


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """Costs of kernels that were timed alone, and what is needed to correct them.

    Args:
        costs: Of each (site, candidate), and of changes of format.
        kernels: What each site runs with each candidate, by name.
        estimated: Names of what was not measured, and the relative errors of their estimates.
        estimator: Says how those were estimated; empty without any.
    """

    costs: CostTable
    kernels: Mapping[str, Mapping[str, str]]
    estimated: Mapping[str, float] = field(default_factory=dict)
    estimator: str = ""


def measured_table(
    network: Network,
    choices: Choices,
    store: Store,
    device: Device,
    budget_s: float = math.inf,
    choice_of: ChoiceOf = modelled,
    estimate: bool = False,
    again: bool = False,
) -> MeasuredCosts:
    """Return the costs on a device: each kernel timed alone, and changes of format.

    What a network costs beside its sites is found by ``cost.latency`` from whole networks.

    Args:
        network: The prepared network.
        choices: Candidates of each site.
        store: Measurements; what it lacks is measured.
        device: Where kernels run.
        budget_s: Seconds to measure.
        choice_of: Schedules of the kernels.
        estimate: Estimate what could not be measured in that time instead of raising.
        again: Measure again what was taken while the device was not as usual.

    Raises:
        DeviceError: The time ran out, and nothing may be estimated.
    """
    siblings = sibling_sites(network)
    tasks, changes = _needed(network, siblings, choices, device.tier, choice_of)
    times = kernel_times(_unique(tasks, changes), store, device, budget_s, estimate, again)
    costs: dict[str, dict[str, dict[str, float]]] = {}
    kernels: dict[str, dict[str, str]] = {}
    for site in network.sites:
        costs[site.id], kernels[site.id] = {}, {}
        for name in choices[site.id]:
            entry = counted_costs(network, site, Candidate.parse(name))
            keys = [task.workload.key for task in tasks[site.id, name]]
            entry["latency_us"] = sum(times.us[key] for key in keys)
            costs[site.id][name] = entry
            kernels[site.id][name] = "+".join(keys)
    between = {key: times.us[task.workload.key] for key, task in changes.items()}
    named = {kernel for row in kernels.values() for kernel in row.values()}
    return MeasuredCosts(
        costs=CostTable(
            costs=costs,
            transitions=_transitions(siblings, choices, between),
            overhead={"size_bytes": float(fixed_bytes(network, choices))},
        ),
        kernels=kernels,
        estimated={
            name: max(times.estimated[key] for key in name.split("+") if key in times.estimated)
            for name in named
            if times.estimated.keys() & set(name.split("+"))
        },
        estimator=times.estimator,
    )


def is_measured(
    network: Network, choices: Choices, store: Store, device: Device, choice_of: ChoiceOf
) -> bool:
    """Tell whether the store has all that :func:`measured_table` needs."""
    tasks, changes = _needed(network, sibling_sites(network), choices, device.tier, choice_of)
    keys = {key_of(task, device) for task in _unique(tasks, changes)}
    return len(store.get_many(keys)) == len(keys)


def _needed(
    network: Network, siblings: Siblings, choices: Choices, tier: Tier, choice_of: ChoiceOf
) -> tuple[_Tasks, _Changes]:
    """Return the kernels of each (site, candidate), and changes of format between siblings."""
    tasks = {
        (site.id, name): _tasks(network, site, Candidate.parse(name), tier, choice_of)
        for site in network.sites
        for name in choices[site.id]
    }
    return tasks, _format_changes(network, siblings, choices)


def _unique(tasks: _Tasks, changes: _Changes) -> list[Task]:
    alone = itertools.chain.from_iterable(tasks.values())
    return list({task.workload.key: task for task in (*alone, *changes.values())}.values())


def _tasks(
    network: Network, site: Site, candidate: Candidate, tier: Tier, choice_of: ChoiceOf
) -> list[Task]:
    """Return what a site runs: its kernel, and the quantization of a dynamic input before it."""
    kernel = workload_of(network, site, candidate, tier)
    operator = operator_name(site.op, site.depthwise)
    choice = choice_of(kernel) if site.multiplies else None
    tasks = [Task(operator=operator, workload=kernel, choice=choice)]
    before = input_workload(site, candidate)
    return tasks if before is None else [Task(operator="quantize_rows", workload=before), *tasks]


def workload_of(network: Network, site: Site, candidate: Candidate, tier: Tier) -> Any:
    """Return the kernel workload of a site between neighbours of its own format."""
    node = network.node(network.node_of[site.id])
    geometry = tuple(node.args[4:9]) if is_call(node, site_conv2d) else ()
    final = all(user.op == "output" for user in node.users)
    return site_workload(site, candidate, tier, geometry, node.args[3] is not None, final)


def sibling_sites(network: Network) -> list[tuple[str, str, fx.Node]]:
    """Return pairs of sites that read one tensor, neighbours in order of execution.

    Where their formats differ the tensor is stored in the wider one and converted for the other.
    A site that follows another one costs nothing more: the store is in the format it reads.
    """
    site_of = network.site_of
    pairs = []
    table = kinds(network, allow_float=True)
    for node in network.module.graph.nodes:
        readers = [
            site_of[user.name].id
            for user in node.users
            if table.get(user.name) is Kind.SITE and user.args[0] is node
        ]
        pairs += [(a, b, node) for a, b in zip(readers, readers[1:], strict=False)]
    return pairs


def _stores(choices: Choices, site: str) -> set[str]:
    return {Candidate.parse(name).input_format for name in choices[site]}


def _format_changes(
    network: Network, siblings: Siblings, choices: Choices
) -> dict[tuple[str, str, str], Task]:
    """Return the conversions that sibling sites may need, by (tensor, wide, narrow)."""
    tasks = {}
    for a, b, node in siblings:
        size = math.prod(network.shapes[node.name][0])
        for first in _stores(choices, a):
            for second in _stores(choices, b):
                wide, narrow = _ordered(first, second)
                if wide != narrow:
                    workload = ConvertWorkload(
                        size=size, source=storage(wide), target=storage(narrow)
                    )
                    tasks[node.name, wide, narrow] = Task(operator="convert", workload=workload)
    return tasks


def _ordered(first: str, second: str) -> tuple[str, str]:
    wide, narrow = sorted((first, second), key=FORMAT_WIDTH.__getitem__, reverse=True)
    return wide, narrow


def _transitions(
    siblings: Siblings,
    choices: Choices,
    seconds: Mapping[tuple[str, str, str], float],
) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    table: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for a, b, node in siblings:
        entry = table.setdefault((a, b), {})
        for first in _stores(choices, a):
            for second in _stores(choices, b):
                wide, narrow = _ordered(first, second)
                cost = 0.0 if wide == narrow else seconds[node.name, wide, narrow]
                entry[first, second] = entry.get((first, second), 0.0) + cost
    return table
