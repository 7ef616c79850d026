"""The emulated aarch64 device that `scripts/aarch64_device.py` sets up, for the tests on it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "aarch64_device.py"


@cache
def script() -> Any:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("aarch64_device", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def folder() -> Path:
    """Return where the device is, or would be."""
    return script().default_folder().resolve()


def not_set_up() -> str | None:
    """Return what is missing, for the reason of a skip; else None."""
    if importlib.util.find_spec("ziglang") is None:
        return "needs ziglang: pip install -e .[cross]"
    return script().missing(folder())
