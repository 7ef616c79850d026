"""A group of subcommands whose name alone means one of them."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultGroup(TyperGroup):
    """Runs ``default`` where the first argument names no subcommand.

    With ``positional`` the default takes arguments: ``mpq profile net.py:make`` is short for
    ``mpq profile measure net.py:make``. Without it only options or nothing lead to the default,
    so that a misspelled subcommand is refused.
    """

    default: ClassVar[str]
    positional: ClassVar[bool] = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default's name in front where it is meant."""
        if self._means_default(args):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _means_default(self, args: list[str]) -> bool:
        if not args:
            return True
        first = args[0]
        if first == "--help" or first in self.commands:
            return False
        return self.positional or first.startswith("-")
