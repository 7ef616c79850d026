"""Docstrings name what they refer to in reStructuredText's roles; the site shows the name alone."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles out of a page."""
    return _ROLE.sub("", html)
