"""Embeddings: the table at its true width, and the lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import fx

from mpq_compile.lower.emit import Value
from mpq_compile.lower.parameters import Recipe, describe_workload
from mpq_compile.lower.rules_matmul import keep_site
from mpq_compile.lower.workloads import embedding_workload

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def embedding(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel with the table and, where that holds codes, the scales of its rows."""
    record, numbers = lowering.records[node.name], lowering.value(node.args[0])
    site = keep_site(lowering, record)
    index: Literal["int32", "int64"] = "int32" if numbers.fmt == "int32" else "int64"
    workload = embedding_workload(record.site, record.candidate, index)
    lowering.kernel_of[record.site.id] = workload.key
    table = Recipe(
        kind="table",
        dtype=workload.table_dtype,
        size=workload.table_size,
        site=site.owner,
        workload=describe_workload(workload),
    )
    arguments = [numbers.var, lowering.emitter.weights(table)]
    if workload.compute == "int":
        name = f"{site.name}.scale"
        scale = lowering.emitter.arrays[name]
        arguments.append(lowering.emitter.array(name, scale))
    return lowering.emitter.kernel(workload, arguments, lowering.shape(node), "fp32", False)
