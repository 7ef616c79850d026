"""A wrong profile is refused with file, line, expected, found and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpq_compile.cost.profile import load_profile, validate_profile
from mpq_compile.errors import ProfileError

GOOD = """\
schema_version: 1
name: mine
description: A device.
kind: analytic
reached: analytic
operators:
  conv2d:
    - candidates: [w8a8, w4a4]
  linear:
    - candidates: [w8a8, w4a8]
      group_sizes: [32, 64]
    - candidates: [w8a8d]
      min_rows: 2
      max_rows: 8
defaults: [w8a8]
energy: {pj_per_mac_bit: 0.1, pj_per_byte: 10}
analytic:
  rate:
    table: {w8a8: 10.0, w4a8: 20.0, w4a4: 40.0}
  bandwidth_gbs: 5.0
  launch_us: 1
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_good_one_loads(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, GOOD))
    assert profile.operators["linear"][0].candidates == ("w8a8g32", "w8a8g64", "w4a8g32", "w4a8g64")
    assert profile.operators["linear"][1].max_rows == 8
    assert profile.analytic is not None and profile.analytic.table is not None
    assert profile.energy is not None and profile.energy.static_mw == 0.0


CASES = {
    # old text, new text, line, then what the error has to say
    "unknown key": ("kind: analytic", "kind: analytic\nknd: cpu", 5, "did you mean 'kind'"),
    "nested unknown key": ("launch_us: 1", "launch_us: 1\n  lanch: 2", 22, "launch_us"),
    "missing key": ("  launch_us: 1\n", "", 17, "analytic lacks launch_us"),
    "missing at the root": ("defaults: [w8a8]\n", "", 1, "the profile lacks defaults"),
    "wrong kind": ("kind: analytic", "kind: analitic", 4, "did you mean 'analytic'"),
    "wrong type": ("launch_us: 1", "launch_us: fast", 21, "expected: a number"),
    "exponent read as text": ("launch_us: 1", "launch_us: 1e3", 21, "write 1000.0: YAML reads"),
    "text for a list": ("defaults: [w8a8]", "defaults: w8a8", 15, "expected: a list"),
    "fraction": ("max_rows: 8", "max_rows: 8.5", 14, "expected: a whole number or null"),
    "upper case": ("name: mine", "name: My-NPU", 2, "lower-case letters"),
    "negative": ("launch_us: 1", "launch_us: -1", 21, "≥ 0"),
    "zero bandwidth": ("bandwidth_gbs: 5.0", "bandwidth_gbs: 0", 20, "> 0"),
    "infinite": ("launch_us: 1", "launch_us: .inf", 21, "finite"),
    "not a number": ("launch_us: 1", "launch_us: .nan", 21, "finite"),
    "infinite in a table": ("w4a8: 20.0", "w4a8: .inf", 19, "finite"),
    "bad candidate": ("[w8a8, w4a4]", "[w8a8, w9a4]", 8, "w<2..8>"),
    "repeated candidate": ("[w8a8, w4a4]", "[w8a8, w8a8]", 8, "no item twice"),
    "empty rules": ("    - candidates: [w8a8, w4a4]", "    []", 7, "at least 1 items"),
    "unknown operator": ("  conv2d:", "  conv3d:", 7, "did you mean 'conv2d'"),
    "groups of a convolution": ("[w8a8, w4a4]", "[w8a8, w4a4g32]", 8, "w4a4g32 for conv2d"),
    "group given twice": ("[w8a8, w4a8]", "[w8a8, w4a8g32]", 10, "given once"),
    "rows in disorder": ("max_rows: 8", "max_rows: 1", 14, "max_rows ≥ min_rows (2)"),
    "unsupported default": ("defaults: [w8a8]", "defaults: [w8a8, fp32]", 15, "'fp32'"),
    "incomplete table": ("w4a8: 20.0, ", "", 19, "expected: w4a8"),
    "rate of no pair": ("w4a8: 20.0", "int4: 20.0", 19, "w<2..8>a<2..8|16>, such as w4a8"),
    "array without columns": ("  rate:", "  array: {rows: 8}\n  rate:", 18, "lacks columns"),
    "empty array": ("  rate:", "  array: {rows: 0, columns: 8}\n  rate:", 18, "≥ 1"),
    "source of nothing": ("analytic:\n", "sources: {energy.pj: me}\nanalytic:\n", 17, "energy.pj"),
    "source of null": ("analytic:\n", "sources: {device: me}\nanalytic:\n", 17, "leave the source"),
    "class without a device": (
        "kind: analytic\nreached: analytic",
        "kind: accelerator\nreached: class",
        1,
        "lacks device",
    ),
    "device without a class": (
        "kind: analytic\nreached: analytic",
        "kind: accelerator\nreached: class\ndevice: mine.py",
        6,
        "file.py:ClassName relative to this file",
    ),
    "device that is no file": (
        "kind: analytic\nreached: analytic",
        "kind: accelerator\nreached: class\ndevice: driver.py:Mine",
        6,
        "no such file of Python code",
    ),
    "accelerator on this machine": (
        "kind: analytic\nreached: analytic",
        "kind: accelerator\nreached: local",
        5,
        "expected: class",
    ),
    "class of a cpu": (
        "kind: analytic\nreached: analytic",
        "kind: cpu\nreached: class\ndevice: a.b:C\ntarget: {kind: llvm}\ntiers: [generic]",
        4,
        "expected: accelerator",
    ),
    "two rates": ("  rate:", "  rate:\n    formula: {peak_gmacs: 1}", 18, "at most 1 keys"),
    "reserved name": ("name: mine", "name: local", 2, "another value"),
    "no analytic block": ("analytic:\n  rate", "analytic: null\nmemory:\n  rate", 17, "a mapping"),
    "rpc without key": (
        "kind: analytic\nreached: analytic",
        "kind: cpu\nreached: rpc",
        1,
        "rpc_key",
    ),
    "cpu without tiers": ("kind: analytic", "kind: cpu", 1, "tiers"),
    "unknown tier": ("kind: analytic", "kind: analytic\ntiers: [avx3]", 5, "did you mean 'avx2'"),
    "other version": ("schema_version: 1", "schema_version: 2", 1, "expected: 1"),
    "duplicate key": ("kind: analytic", "kind: analytic\nkind: cpu", 5, "stands twice"),
    "key that is a bool": ("kind: analytic", "kind: analytic\non: cpu", 5, "not a string"),
    "open bracket": ("defaults: [w8a8]", "defaults: [w8a8", 16, "malformed YAML"),
    "tab": ("    - candidates: [w8a8, w4a4]", "\t- candidates: [w8a8]", 8, "malformed YAML"),
    "python object": ("kind: analytic", "kind: !!python/name:os.system ''", 4, "malformed YAML"),
    "second document": ("energy:", "---\nenergy:", 16, "malformed YAML"),
    "impossible date": ("description: A device.", "description: 2025-13-45", 1, "malformed YAML"),
}


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_line(tmp_path: Path, case: str) -> None:
    old, new, line, said = CASES[case]
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    texts = [str(error) for error in validate_profile(path)]
    assert str(caught.value) == texts[0]
    matching = [text for text in texts if said in text]
    assert matching, texts
    assert matching[0].startswith(f"{path}:{line}: "), matching[0]
    for label in ("expected:", "found:", "remedy:"):
        assert label in matching[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "just text",
        "[1, 2]",
        "- &a [*a]",
        "&a {name: *a, description: *a}",
        b"\xff\xfe\x00",
        b"name: \x07",
        "[" * 500,
        "? [1]\n: 2",
        "<<: 1",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_a_profile_error(tmp_path: Path, text: str | bytes) -> None:
    path = written(tmp_path, text)
    problems = validate_profile(path)
    assert problems
    assert all(str(problem).startswith(f"{path}:1: ") for problem in problems)
    with pytest.raises(ProfileError):
        load_profile(path)


def test_every_problem_is_listed_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("kind: analytic", "kind: gpu").replace("launch_us: 1", "launch_us: -1")
    path = written(tmp_path, text)
    wheres = [problem.where for problem in validate_profile(path)]
    assert wheres == [f"{path}:4", f"{path}:21"]


def test_anchor_is_blamed_where_it_stands(tmp_path: Path) -> None:
    text = GOOD.replace("conv2d:\n", "conv2d: &rules\n", 1).replace("w4a4]", "w1a4]", 1)
    text = text.replace("  linear:", "  depthwise_conv2d: *rules\n  linear:", 1)
    path = written(tmp_path, text)
    assert {problem.where for problem in validate_profile(path)} == {f"{path}:8"}


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path)
    assert "no such profile file" in str(validate_profile(tmp_path / "absent.yaml")[0])
