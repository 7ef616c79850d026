"""The format (u2 … u8, bf16, fp32) in which each tensor is stored, and whose range it covers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mpq_compile.passes.kinds import Kind
from mpq_compile.passes.network import Network
from mpq_compile.types import FORMAT_WIDTH, Candidate, storage

# Sharing the quantizer of the input: codes move, scale and zero point stay.
_SHARES_INPUT = (Kind.MOVE, Kind.PICK, Kind.MAX_POOL)
# Kinds that work on whatever format their result is stored in.
_FOLLOWS_OUTPUT = (Kind.ADD, Kind.MULTIPLY, Kind.AFFINE, Kind.CLAMP, Kind.AVERAGE, Kind.TABLE)


def quantizer_roots(network: Network, table: Mapping[str, Kind]) -> dict[str, str]:
    """Return, for each tensor, the node whose range its codes cover.

    Moved values keep their input's quantizer. A site whose result is only concatenated stores
    with the concatenation's, which then copies bytes.
    """
    roots: dict[str, str] = {}
    for node in network.module.graph.nodes:
        roots[node.name] = node.name
        if table.get(node.name) in _SHARES_INPUT and not _is_new(node, table):
            roots[node.name] = roots[node.args[0].name]
    for node in network.module.graph.nodes:
        if table.get(node.name) is Kind.CONCAT:
            for part in node.args[0]:
                if table.get(part.name) is Kind.SITE and set(part.users) == {node}:
                    roots[part.name] = node.name
    return roots


def _is_new(node: fx.Node, table: Mapping[str, Kind]) -> bool:
    """Tell whether a picked result was computed by what it is picked from, not moved."""
    source = table.get(node.args[0].name)
    return table[node.name] is Kind.PICK and source is not Kind.MOVE


def stored_formats(
    network: Network, table: Mapping[str, Kind], candidates: Mapping[str, Candidate]
) -> dict[str, str]:
    """Return the storage format of each tensor under an assignment.

    A tensor is stored in the widest format that a site, a float operator or the network's output
    asks of it, or that a reader takes in any format, stores itself and can have for nothing: one
    no wider than that in which the tensor is computed. So the residual behind a layer norm stays
    float while the site beside it reads codes, and the residual between two integer sites stays
    codes. A tensor that only joins and elementwise operators read takes theirs.

    Args:
        network: The prepared network.
        table: Kind of each call.
        candidates: Node name of each site to its candidate.
    """
    formats: dict[str, str] = {}
    native = native_formats(network, table, candidates)
    for node in reversed(network.module.graph.nodes):
        firm: list[str] = []
        soft: list[str] = []
        for user in node.users:
            demand = _demand(node, user, table, candidates, formats, native)
            (firm if demand[1] else soft).append(demand[0])
        averaged = bool(soft) and all(table.get(u.name) is Kind.AVERAGE for u in node.users)
        # Sums of codes are exact in any order; sums of floats are not.
        fixed = averaged or node.op == "get_attr"
        free = [fmt for fmt in soft if FORMAT_WIDTH[fmt] <= FORMAT_WIDTH[native[node.name]]]
        asked = firm + free if firm else soft or ["fp32"]
        wanted = [native[node.name]] if fixed else asked
        formats[node.name] = max(wanted, key=FORMAT_WIDTH.__getitem__)
    return formats


def native_formats(
    network: Network, table: Mapping[str, Kind], candidates: Mapping[str, Candidate]
) -> dict[str, str]:
    """Return the format in which each tensor is computed, whoever reads it.

    Attention multiplies in the widest format of its operands: codes where integer sites make them.
    """
    native: dict[str, str] = {}
    for node in network.module.graph.nodes:
        kind = table.get(node.name)
        native[node.name] = "fp32"
        if kind is Kind.SITE:
            native[node.name] = candidates[node.name].input_format
        elif kind in (*_SHARES_INPUT, *_FOLLOWS_OUTPUT, Kind.CONCAT):
            tensors = [n for n in node.all_input_nodes if n.op == "call_function"]
            sources = [native[n.name] for n in tensors if table[n.name] is not Kind.SHAPE]
            native[node.name] = max(sources or ["fp32"], key=FORMAT_WIDTH.__getitem__)
        elif kind is Kind.ATTENTION:
            operands = [native[operand.name] for operand in node.args[:3]]
            native[node.name] = max(operands, key=FORMAT_WIDTH.__getitem__)
    return native


def _demand(
    node: fx.Node,
    user: fx.Node,
    table: Mapping[str, Kind],
    candidates: Mapping[str, Candidate],
    formats: Mapping[str, str],
    native: Mapping[str, str],
) -> tuple[str, bool]:
    """Format that ``user`` asks of ``node``, and whether it must have it."""
    kind = table.get(user.name)
    if kind is Kind.SITE:
        if user.args[0] is node:
            return candidates[user.name].input_format, True
        return formats[user.name], False
    if kind in _FOLLOWS_OUTPUT:
        # A table reads codes; the others read any format.
        reads_codes = kind is Kind.TABLE and storage(formats[user.name]) == "u8"
        return formats[user.name], reads_codes
    if kind in (*_SHARES_INPUT, Kind.CONCAT):
        return formats[user.name], True
    if kind is Kind.ATTENTION and node in user.args[:3]:
        return native[user.name], True
    return "fp32", True
