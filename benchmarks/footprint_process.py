"""One step of ``footprint.py`` in a fresh process; prints one JSON object. Not called by hand.

python benchmarks/footprint_process.py compile NETWORK FOLDER
python benchmarks/footprint_process.py {ours,onnx,openvino} MODEL SHAPE
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RUNS = 20
# What a process imports before it can load a model of a runtime.
IMPORTS = {"ours": "mpq_compile.runtime.network", "onnx": "onnxruntime", "openvino": "openvino"}
LOADERS = {"ours": "load_artifact", "onnx": "load_onnx", "openvino": "load_openvino"}


def memory_mb() -> dict[str, float]:
    """Return resident megabytes of this process: all, private, of files, and the peak so far."""
    names = {"VmRSS": "rss", "RssAnon": "private", "RssFile": "files", "VmHWM": "peak"}
    with open("/proc/self/status", encoding="utf-8") as lines:
        found = {line.partition(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return {name: int(found[key]) * 1024 / 1e6 for key, name in names.items()}


def compile_network(network: str, folder: Path) -> dict[str, Any]:
    """Time a calibrated session up to a loadable artifact; costs come from the database."""
    start = time.perf_counter()
    import tvm  # noqa: F401
    from contenders.task import NetTask
    from peer_nets import NETWORKS

    from mpq_compile.closed_loop import compile_session
    from mpq_compile.runtime.threads import thread_count
    from mpq_compile.session import Session
    from mpq_compile.types import Budget

    imported = time.perf_counter()
    task = NetTask(NETWORKS[network], 1, thread_count(), folder)
    session = Session(task.module, task.example, task.calibration, candidates=["w8a8", "w4a8"])
    assert session.graph and session.sensitivity
    calibrated = time.perf_counter()
    net = compile_session(session, Budget(), verify=False)
    compiled = time.perf_counter()
    net.save(folder / "artifact")
    return {
        "import_s": imported - start,
        "calibrate_s": calibrated - imported,
        "compile_s": compiled - calibrated,
        "candidates": sorted(set(net.plan.assignment.values())),
    }


def run_model(runtime: str, model: Path, shape: list[int]) -> dict[str, Any]:
    """Load a saved model and run it; return seconds and memory at each step."""
    import numpy as np
    from contenders import saved_models

    from mpq_compile.runtime.threads import thread_count

    threads = thread_count()
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    before, start = memory_mb(), time.perf_counter()
    importlib.import_module(IMPORTS[runtime])
    imported, after_import = time.perf_counter(), memory_mb()
    run = getattr(saved_models, LOADERS[runtime])(model, threads)
    loaded, after_load = time.perf_counter(), memory_mb()
    for _ in range(RUNS):
        run(x)
    assert "torch" not in sys.modules
    return {
        "import_s": imported - start,
        "load_s": loaded - imported,
        "memory_mb": {
            "start": before, "imported": after_import, "loaded": after_load, "running": memory_mb()
        },
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Do the step that the first argument names."""
    step, first, second = arguments
    if step == "compile":
        answer = compile_network(first, Path(second))
    else:
        answer = run_model(step, Path(first), json.loads(second))
    # Past what runtimes print themselves.
    os.write(1, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
