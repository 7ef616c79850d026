"""`mpq targets`: list, show, validate."""

from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Mpq

from mpq_compile.cost.profile import PROFILE_DIR, list_profiles


@pytest.mark.parametrize("verb", [(), ("list",)])
def test_list(mpq: Mpq, verb: tuple[str, ...]) -> None:
    result = mpq("targets", *verb, "--json")
    assert result.code == 0
    assert [row["name"] for row in result.json["targets"]] == list_profiles()
    assert result.json["local"] in list_profiles()
    assert "bit_serial" in mpq("targets", *verb).out


def test_show(mpq: Mpq) -> None:
    result = mpq("targets", "show", "bit_serial", "--json")
    assert result.code == 0
    assert result.json["kind"] == "analytic"
    assert "conv2d" in mpq("targets", "show", "local").out


def test_list_says_which_target_this_machine_is(mpq: Mpq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_TIER", "generic")
    rows = {row["name"]: row for row in mpq("targets", "--json").json["targets"]}
    assert rows["generic"]["here"] == "yes"
    assert rows["bit_serial"]["here"] == rows["systolic_npu"]["here"] == "plans for it"
    assert rows["x86_64_amx"]["here"] in ("no", "with MPQ_TIER=amx")
    assert rows["systolic_npu"]["reached"] == "analytic"


def test_show_prints_figures_constraints_and_sources(mpq: Mpq) -> None:
    out = mpq("targets", "show", "systolic_npu").out
    for text in (
        "64 rows (reduction) × 64 columns",
        "w8a8 4096, w4a8 4096, w4a4 8192 GMAC/s",
        "25.6 GB/s",
        "2 MiB",
        "DRAM 1 GiB",
        "0.0036 pJ",
        "multiples of 2",
        "energy.pj_per_byte: DRAM takes 1.3 nJ for 8 bytes (Horowitz",
    ):
        assert text in out, text
    data = mpq("targets", "show", "systolic_npu", "--json").json
    assert data["rates_gmacs"] == {"w8a8": 4096.0, "w4a8": 4096.0, "w4a4": 8192.0}
    assert data["analytic"]["array"] == {"rows": 64, "columns": 64}
    assert data["operators"]["conv2d"][1]["channel_multiple"] == 2
    assert data["sources"]["energy.static_mw"]


def test_show_a_cpu(mpq: Mpq) -> None:
    out = mpq("targets", "show", "x86_64_vnni").out
    for text in ("avx512_vnni", "vnni_bf16, vnni", "L2 1 MiB", "mcpu=cascadelake", "the group"):
        assert text in out, text
    assert mpq("targets", "show", "generic", "--json").json["rates_gmacs"] == {}


def test_show_an_accelerator_with_a_class(mpq: Mpq, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "schema_version: 1\nname: mine\ndescription: Mine.\nkind: accelerator\nreached: class\n"
        "device: mine.py:Mine\noverhead_us: 7\ndefaults: [w8a8]\n"
        "operators:\n  linear:\n    - {candidates: [w8a8], min_rows: 2, max_rows: 9}\n",
        encoding="utf-8",
    )
    (tmp_path / "mine.py").write_text("raise RuntimeError('showing imports nothing')")
    out = mpq("targets", "show", file).out
    for text in ("mine.py:Mine", "asks its class", "7 µs a network", "rows ≥ 2, rows ≤ 9"):
        assert text in out, text


def test_unknown_name_suggests_the_nearest(mpq: Mpq) -> None:
    result = mpq("targets", "show", "bit_serail", "--json")
    assert result.code == 2
    assert "'bit_serial'" in result.json["remedy"]


def test_validate(mpq: Mpq) -> None:
    result = mpq("targets", "validate", PROFILE_DIR / "bit_serial.yaml", "--json")
    assert (result.code, result.json["valid"]) == (0, True)


def test_malformed_yaml_names_the_line(mpq: Mpq, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nkind: [cpu\n", encoding="utf-8")
    result = mpq("targets", "validate", file, "--json")
    assert result.code == 1
    assert f"{file}:3" in result.json["problems"][0]["where"]
    out = mpq("targets", "validate", file).out
    assert f"{file}:3" in out and f"{file}: 1 problem" in out


def test_every_problem_of_a_file_is_listed(mpq: Mpq, tmp_path: Path) -> None:
    text = (PROFILE_DIR / "bit_serial.yaml").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("kind: analytic", "kind: abacus\ncolour: red"), encoding="utf-8")
    problems = mpq("targets", "validate", file, "--json").json["problems"]
    assert len(problems) >= 2


def test_validate_imports_the_class(mpq: Mpq, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "schema_version: 1\nname: mine\ndescription: Mine.\nkind: accelerator\nreached: class\n"
        "device: mine.py:Mine\ndefaults: [w8a8]\noperators: {linear: [{candidates: [w8a8]}]}\n",
        encoding="utf-8",
    )
    (tmp_path / "mine.py").write_text("class Mien:\n    def measure(self, workload): return 1.0\n")
    result = mpq("targets", "validate", file, "--json")
    [problem] = result.json["problems"]
    assert (result.code, problem["message"]) == (1, "mine.py has no class 'Mine'")
    assert "'Mien'" in problem["remedy"]
    (tmp_path / "mine.py").write_text("class Mine:\n    def measure(self, workload): return 1.0\n")
    assert mpq("targets", "validate", file, "--json").json["valid"]


def test_an_unknown_value_is_one_problem(mpq: Mpq, tmp_path: Path) -> None:
    text = (PROFILE_DIR / "bit_serial.yaml").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("reached: analytic", "reached: analytik"), encoding="utf-8")
    [problem] = mpq("targets", "validate", file, "--json").json["problems"]
    assert problem["found"] == "'analytik'" and "'analytic'" in problem["remedy"]


def test_validate_a_file_that_is_missing(mpq: Mpq, tmp_path: Path) -> None:
    assert mpq("targets", "validate", tmp_path / "none.yaml", "--json").code == 2
