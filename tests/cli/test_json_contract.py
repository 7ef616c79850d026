"""What every verb promises: one JSON object, exit codes, no heavy imports, clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from verbs import Mpq

ERROR_KEYS = {"error", "message", "where", "expected", "found", "remedy"}
VERBS = (
    ["demo", "doctor", "targets", "profile", "plan", "frontier"]
    + ["search", "compile", "verify", "trace", "run", "explain", "export", "solve", "check"]
    + [("targets", verb) for verb in ("list", "show", "validate")]
    + [("profile", verb) for verb in ("measure", "list", "prune", "export", "import")]
    + [("device", verb) for verb in ("list", "serve", "tracker")]
)


def words(verb: str | tuple[str, ...]) -> tuple[str, ...]:
    return (verb,) if isinstance(verb, str) else verb


@pytest.mark.parametrize("verb", VERBS)
def test_help(mpq: Mpq, verb: str | tuple[str, ...]) -> None:
    result = mpq(*words(verb), "--help")
    assert (result.code, result.err) == (0, "")
    assert "Usage" in result.out


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("targets", "profile", "device")])
def test_every_verb_offers_json(mpq: Mpq, verb: str | tuple[str, ...]) -> None:
    assert "--json" in mpq(*words(verb), "--help").out


def test_no_arguments_show_the_verbs(mpq: Mpq) -> None:
    result = mpq()
    assert result.code == 0
    assert "explain" in result.out


def test_version(mpq: Mpq) -> None:
    import mpq_compile

    assert mpq("--version").out.strip() == mpq_compile.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve",),
        ("solv", "x"),
        ("plan", "--latncy-ms", "3"),
        ("plan", "net.py:make", "--data", "x.npz", "--latency-ms", "fast"),
        ("compile", "net.py:make", "--data", "x.npz"),
        ("verify", "folder", "--processes", "1"),
        ("device", "tracker", "--port", "99999"),
        ("device", "serve", "--key", "k", "--port", "0"),
        ("targets", "lst"),
        ("profile",),
        ("profile", "net.py:make"),
        ("profile", "net.py:make", "--sweep"),
        ("profile", "prune"),
        ("--unknown",),
    ],
)
def test_usage_errors(mpq: Mpq, arguments: tuple[str, ...]) -> None:
    plain, machine = mpq(*arguments), mpq(*arguments, "--json")
    assert plain.code == machine.code == 2
    assert plain.out == ""
    assert plain.err.startswith("error: ")
    assert set(machine.json) == ERROR_KEYS
    assert machine.json["error"] == "UsageError"


def test_a_misspelled_option_is_answered_with_the_right_one(mpq: Mpq) -> None:
    assert "--latency-ms" in mpq("plan", "--latncy-ms", "3").err


@pytest.mark.parametrize(
    "arguments", [("--help",), ("targets", "--json"), ("solve", "problem.json", "--json")]
)
def test_light_verbs_import_neither_torch_nor_tvm(
    fresh: Mpq, place: Path, problem: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    (place / "problem.json").write_text(json.dumps(problem), encoding="utf-8")
    heavy = "{'torch', 'tvm', 'tvm_ffi', 'matplotlib'} & set(sys.modules)"
    result = fresh(
        "-c",
        "import sys; from mpq_compile.cli import execute\n"
        f"code = execute({list(arguments)!r}); found = {heavy}\n"
        "sys.exit(f'imported {found}' if found else code)",
    )
    assert (result.code, result.err) == (0, "")


def test_what_is_printed_past_python_stays_out_of_json(
    mpq: Mpq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def talkative(output: Path, quick: bool) -> dict[str, Any]:
        os.write(1, b"a native library\n")
        print("a Python library")
        return {"output": output, "quick": quick, "nan": float("nan"), "inf": [float("inf")]}

    monkeypatch.setattr("mpq_compile.demo.run_demo", talkative)
    result = mpq("demo", "-o", tmp_path / "demo", "--quick", "--json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert result.json == {
        "output": str(tmp_path / "demo"),
        "quick": True,
        "nan": None,
        "inf": [None],
    }
    assert "a native library" in result.err
    assert "a Python library" in result.err


def test_an_unexpected_exception_is_one_line(mpq: Mpq, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Path, quick: bool) -> dict[str, Any]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("mpq_compile.demo.run_demo", broken)
    result = mpq("demo", "--json")
    assert result.code == 2
    assert result.json["error"] == "ZeroDivisionError"
    assert "Traceback" not in result.err
    monkeypatch.setenv("MPQ_DEBUG", "1")
    assert "Traceback" in mpq("demo").err


def test_the_demo_refuses_a_file(mpq: Mpq, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert mpq("demo", "-o", tmp_path / "file").code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_interrupt(option: tuple[str, ...]) -> None:
    code = (
        "import os, signal, sys, threading; from mpq_compile import cli\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"sys.argv = {['mpq', 'solve', '-', *option]!r}; cli.main()"
    )
    reader, writer = os.pipe()  # stays open: the command waits for its problem
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdin=reader, capture_output=True, text=True, timeout=60)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
    if option:
        assert json.loads(done.stdout)["error"] == "Interrupted"
    else:
        assert "interrupted" in done.stderr


def test_ctrl_c_that_native_code_turned_into_another_error() -> None:
    code = (
        "import os, signal, sys\n"
        "from mpq_compile import cli, demo\n"
        "def compiling(output, quick):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        raise RuntimeError('') from None\n"
        "demo.run_demo = compiling\n"
        "sys.argv = ['mpq', 'demo', '--json']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert json.loads(done.stdout)["error"] == "Interrupted"


def test_a_reader_that_leaves(plan_file: Path) -> None:
    command = f"{sys.executable} -m mpq_compile explain {plan_file} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
