"""Move residual additions and clamps into the site before them: one operator, one store."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call, only_user

_RESIDUAL = 3
Shapes = dict[str, tuple[tuple[int, ...], object]]


@dataclass(frozen=True, kw_only=True)
class FuseEpilogues:
    """site → add → clamp becomes one site call; add, multiply and affine take a clamp too.

    Args:
        shapes: Shape and dtype by node name: only additions without broadcasting fuse.
    """

    shapes: Shapes
    name: str = "fuse_epilogues"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        order = {node: index for index, node in enumerate(module.graph.nodes)}
        for node in list(module.graph.nodes):
            if is_call(node, *ops.SITE_OPS):
                node = self._fuse_residual(module, node, order)
            if is_call(node, *ops.CLAMPED):
                _fuse_clamp(module, node)
        return module

    def _fuse_residual(
        self, module: fx.GraphModule, site: fx.Node, order: dict[fx.Node, int]
    ) -> fx.Node:
        user = only_user(site)
        if user is None or not is_call(user, ops.add):
            return site
        other = user.args[1] if user.args[0] is site else user.args[0]
        if not isinstance(other, fx.Node) or not self._fits(site, other, user, order):
            return site
        _move_before(module, site, user)
        site.args = (*site.args[:_RESIDUAL], other, *site.args[_RESIDUAL + 1 : -2], *user.args[2:])
        user.replace_all_uses_with(site)
        module.graph.erase_node(user)
        return site

    def _fits(
        self, site: fx.Node, other: fx.Node, user: fx.Node, order: dict[fx.Node, int]
    ) -> bool:
        if other is site or site.args[_RESIDUAL] is not None or _clamps(site):
            return False
        shapes = [self.shapes.get(n.name, (None,))[0] for n in (site, other, user)]
        if shapes[0] is None or shapes.count(shapes[0]) != 3:
            return False
        # Of two sites that meet in a sum, the later one takes the earlier one's result.
        later_site = is_call(other, *ops.SITE_OPS) and order[other] > order[site]
        return not (later_site and only_user(other) is user)


def _clamps(node: fx.Node) -> bool:
    return tuple(node.args[-2:]) != (-ops.INF, ops.INF)


def _move_before(module: fx.GraphModule, node: fx.Node, place: fx.Node) -> None:
    place.prepend(node)


def _fuse_clamp(module: fx.GraphModule, node: fx.Node) -> None:
    user = only_user(node)
    if user is None or not is_call(user, ops.clamp) or _clamps(node):
        return
    node.args = (*node.args[:-2], *user.args[1:])
    user.replace_all_uses_with(node)
    module.graph.erase_node(user)
