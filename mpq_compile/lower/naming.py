"""Variables of a lowered module bear the name of the node that they were emitted for."""

from __future__ import annotations

# Between the name and a number: no variable has the name of another one.
_BEFORE_NUMBER = "__"


def numbered(node: str, number: int) -> str:
    """Return the name of the ``number``-th variable that is emitted for a node."""
    return f"{node}{_BEFORE_NUMBER}{number}"


def node_of(variable: str) -> str:
    """Return the node that a variable was emitted for; "" where a pass made it up."""
    return variable.rpartition(_BEFORE_NUMBER)[0]
