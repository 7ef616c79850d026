"""Equations of the site as MathML, which browsers draw by themselves: no script is loaded.

A fence of the language ``math`` holds LaTeX; GitHub draws the same fence.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def block(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """Return a displayed equation; the arguments are those of a formatter of SuperFences."""
    return f'<div class="equation">{convert(source.strip(), display="block")}</div>'


def on_config(config: Any) -> Any:
    """Have SuperFences draw fences of ``math``."""
    fence = {"name": "math", "class": "equation", "format": block}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config
