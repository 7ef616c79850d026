"""Fingerprints: stable between processes, and other for what changes a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpq_compile.kernels.tier import detect_tier
from mpq_compile.runtime import fingerprint
from mpq_compile.runtime.fingerprint import (
    default_threads,
    device_fingerprint,
    kernel_hash,
    toolchain_hash,
)

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import mpq_compile.cost.analytic, mpq_compile.lock, mpq_compile.cost.store
from mpq_compile.runtime.fingerprint import device_fingerprint, kernel_hash, toolchain_hash
print(device_fingerprint(), toolchain_hash(), kernel_hash())
print([name for name in ("tvm", "torch", "numpy") if name in sys.modules])
"""


def test_the_same_in_another_process_and_nothing_heavy_imported() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == f"{device_fingerprint()} {toolchain_hash()} {kernel_hash()}"
    assert second == "[]"


def test_device_names_what_matters() -> None:
    name = device_fingerprint(threads=3)
    assert f"-{os.cpu_count()}c-3t-{detect_tier().name}-" in name
    assert name.isascii() and name.isprintable() and " " not in name


def test_device_depends_on_tier_threads_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {device_fingerprint(tier="avx2", threads=1), device_fingerprint(tier="avx2", threads=2)}
    names.add(device_fingerprint(tier="generic", threads=1))
    monkeypatch.setattr(fingerprint, "host_flags", lambda: frozenset({"sse2"}))
    names.add(device_fingerprint(tier="avx2", threads=1))
    assert len(names) == 4


def test_a_forced_tier_is_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_TIER", "generic")
    assert "-generic-" in device_fingerprint()


@pytest.mark.parametrize(
    ("fields", "slug"),
    [
        ({"model name": "Intel(R) Xeon(R) @ 2.60GHz"}, "intel_r_xeon_r_2_60ghz"),
        ({"CPU implementer": "0x41", "CPU part": "0xd40"}, "0x41_0xd40"),
    ],
)
def test_model_names(monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], slug: str) -> None:
    monkeypatch.setattr(fingerprint, "_cpu_fields", lambda: fields)
    monkeypatch.setattr(fingerprint, "_model_name", fingerprint._model_name.__wrapped__)
    assert f"-{slug}-" in device_fingerprint()


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads(monkeypatch: pytest.MonkeyPatch, given: str, expected: int | None) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", given)
    assert default_threads() == (expected or len(os.sched_getaffinity(0)))


def test_toolchain_depends_on_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = toolchain_hash()
    assert before == toolchain_hash() and len(before) == 16
    monkeypatch.setattr(fingerprint, "_version", lambda name: f"{name} 99")
    assert toolchain_hash() != before


def test_kernels_depend_on_sources_only(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for path, text in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return kernel_hash(tmp_path / name)

    base = folder("base", {"a.py": "1", "sub/b.py": "2"})
    assert folder("same", {"sub/b.py": "2", "a.py": "1", "__pycache__/a.cpython.pyc": "x"}) == base
    assert folder("edited", {"a.py": "1 ", "sub/b.py": "2"}) != base
    assert folder("renamed", {"c.py": "1", "sub/b.py": "2"}) != base
    assert folder("more", {"a.py": "1", "sub/b.py": "2", "c.c": ""}) != base
    assert folder("moved", {"a.py": "", "sub/b.py": "12"}) != base


def test_a_process_keeps_its_kernels(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = kernel_hash(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert kernel_hash(tmp_path) == before
