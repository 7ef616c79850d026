"""Compile time, artifact size, load time and resident memory, ours beside the int8 peers.

    pip install -e .[peers]
    python benchmarks/footprint.py [--net resnet18,encoder] [--json FILE]

Each figure comes from a fresh process. Compiling starts from a calibrated session whose costs an
earlier process has measured. Loading starts after the runtime was imported, in a process without
torch; memory is what is resident after 20 runs, and the most there ever was. Peers load and run
a saved int8 model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contenders.report import environment
from contenders.task import NetTask
from peer_nets import NETWORKS

from mpq_compile.lock import timing_lock
from mpq_compile.runtime.threads import physical_cores

HERE = Path(__file__).resolve().parent
LIMITS = {"compile_s": 15.0, "load_s": 0.5, "memory": 1.5}


def fresh(*arguments: str) -> dict[str, Any]:
    """Run a step in a fresh process, nothing else being timed; return its answer."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "MPQ_PROGRESS": "0"}
    command = [sys.executable, str(HERE / "footprint_process.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(*arguments: str) -> dict[str, Any]:
    """Run a step in a fresh process while nothing else is timed."""
    with timing_lock():
        return fresh(*arguments)


def compiled(task: NetTask) -> dict[str, Any]:
    """Compile twice: the first process measures costs, the second finds them."""
    fresh("compile", task.net.name, str(task.folder))
    answer = timed("compile", task.net.name, str(task.folder))
    files = [path for path in (task.folder / "artifact").iterdir() if path.is_file()]
    return answer | {"files": {path.name: path.stat().st_size for path in files}}


def models(task: NetTask) -> dict[str, Path]:
    """Return the saved model of each runtime that is installed."""
    found = {"ours": task.folder / "artifact"}
    if find_spec("onnxruntime"):
        from contenders.onnx_runtime import quantized

        found["onnx"] = quantized(task)
    if find_spec("nncf"):
        from contenders.openvino_runtime import quantized_model

        found["openvino"] = quantized_model(task)
    return found


def measure(network: str) -> dict[str, Any]:
    """Return everything about one network."""
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        task = NetTask(NETWORKS[network], 1, physical_cores(), Path(folder))
        with timing_lock(shared=True):
            paths = models(task)
        answer = {"network": network, "compile": compiled(task)}
        shape = json.dumps([1, *task.net.shape])
        answer["runtimes"] = {name: timed(name, str(path), shape) for name, path in paths.items()}
    return answer


def report(result: dict[str, Any]) -> list[str]:
    """Return the lines of one network."""
    step, files = result["compile"], result["compile"]["files"]
    sizes = ", ".join(f"{name} {size / 1e3:,.0f} kB" for name, size in sorted(files.items()))
    lines = [
        f"{result['network']}: import {step['import_s']:.1f} s, calibrate "
        f"{step['calibrate_s']:.1f} s, compile {step['compile_s']:.1f} s "
        f"(goal ≤ {LIMITS['compile_s']:g} s) to {', '.join(step['candidates'])}",
        f"  artifact {sum(files.values()) / 1e3:,.0f} kB: {sizes}",
        "  runtime   import s  load s   RSS MB: start  imported  loaded  running    peak"
        "  (running: private, of files)",
    ]
    lines += [_runtime_line(name, row) for name, row in result["runtimes"].items()]
    return lines + _memory_verdict(result["runtimes"])


def _runtime_line(name: str, row: dict[str, Any]) -> str:
    memory = row["memory_mb"]
    steps = "".join(f"{memory[key]['rss']:9.1f}" for key in ("imported", "loaded", "running"))
    running = memory["running"]
    return (
        f"  {name:9s} {row['import_s']:8.2f} {row['load_s']:7.3f} {memory['start']['rss']:14.1f}"
        f"{steps} {running['peak']:8.1f}  ({running['private']:.1f}, {running['files']:.1f})"
    )


def _memory_verdict(runtimes: dict[str, Any]) -> list[str]:
    resident = {name: row["memory_mb"]["running"]["rss"] for name, row in runtimes.items()}
    own = resident.pop("ours")
    load = runtimes["ours"]["load_s"]
    lines = [f"  load {load:.3f} s (goal ≤ {LIMITS['load_s']:g} s)"]
    if resident:
        least = min(resident, key=lambda name: resident[name])
        ratio = own / resident[least]
        lines.append(f"  memory {ratio:.2f}× {least} (goal ≤ {LIMITS['memory']:g}×)")
    return lines


def main() -> None:
    """Print a block a network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default=",".join(NETWORKS))
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    results = []
    for network in options.net.split(","):
        results.append(measure(network))
        print("\n".join(report(results[-1])), flush=True)
    if options.json:
        body = {"environment": environment(physical_cores()), "networks": results}
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
