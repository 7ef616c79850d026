"""Results on disk under the hash of what they follow from: work that was done is not done again.

One JSON file a result, written whole or not at all, so that any number of processes may share the
folder and an interrupted run goes on where it was. ``MPQ_EVALUATIONS`` names the folder, ``0``
keeps nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpq_compile.lock import user_cache_dir


def evaluations_dir() -> Path | None:
    """Return where evaluations are kept; None where they are not."""
    given = os.environ.get("MPQ_EVALUATIONS", "")
    if given == "0":
        return None
    return Path(given) if given else user_cache_dir() / "evaluations"


class Memo:
    """A folder of results by key.

    Args:
        folder: Made when the first result is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what is kept under ``key``; None where nothing readable is."""
        if self._folder is None:
            return None
        with suppress(OSError, ValueError):
            found = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
        return None

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a result; where the folder cannot be written, only the time is lost."""
        if self._folder is None:
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(dict(result), stream)
            os.replace(name, self._folder / f"{key}.json")
