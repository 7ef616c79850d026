"""``mpq device``, and the other verbs with a remote device as their target."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from farm import Farm, farm, free_port, until
from verbs import Mpq

from mpq_compile.runtime.artifact import open_artifact, seal

KEY = "cli"


@pytest.fixture(scope="module")
def servers() -> Iterator[Farm]:
    with farm() as made:
        made.serve(KEY)
        yield made


def test_a_free_device_says_what_it_is(mpq: Mpq, servers: Farm) -> None:
    tracker = f"127.0.0.1:{servers.port}"
    result = mpq("device", "list", "--tracker", tracker, "--json")
    assert (result.code, result.json["tracker"]) == (0, tracker)
    [row] = result.json["devices"]
    assert (row["key"], row["state"], row["target"]) == (KEY, "free", servers.target(KEY))
    assert row["server"] in servers.servers
    assert {"tier", "threads", "fingerprint", "flags", "versions", "kernels"} < row.keys()
    until(lambda: servers.free(KEY) == 1)
    shown = mpq("device", "--tracker", tracker).out
    assert row["fingerprint"] in shown and f"at {row['server']}, free" in shown


def test_the_address_of_the_tracker_may_stand_in_the_environment(
    mpq: Mpq, servers: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_TRACKER", f"127.0.0.1:{servers.port}")
    assert mpq("device", "--json").json["devices"][0]["key"] == KEY


def test_no_tracker_is_an_error_that_says_what_to_do(mpq: Mpq) -> None:
    result = mpq("device", "list", "--tracker", "127.0.0.1:1", "--json")
    assert (result.code, result.json["error"]) == (2, "DeviceError")
    assert "mpq device tracker" in result.json["remedy"]


@pytest.mark.parametrize(
    "target",
    ["rpc://nowhere", "rpc://127.0.0.1:9190/", "rpc://127.0.0.1:x/key", "rpc:/x", "host:9391/k1"],
)
def test_malformed_addresses(mpq: Mpq, job: tuple[str, ...], target: str) -> None:
    result = mpq("profile", *job, "--target", target, "--json")
    assert (result.code, result.json["error"]) == (2, "DeviceError")
    assert "rpc://host:port/KEY" in result.json["expected"]
    assert "rpc://host:9391/k1" in result.json["remedy"] or target != "host:9391/k1"


@pytest.mark.parametrize(
    "words, expected",
    [
        (("list", "--tracker", "foo"), "HOST:PORT"),
        (("serve", "--key", "k", "--tracker", "foo:70000"), "HOST:PORT"),
        (("serve", "--key", "a/b"), "a key without a slash"),
    ],
)
def test_malformed_parts_of_an_address(mpq: Mpq, words: tuple[str, ...], expected: str) -> None:
    result = mpq("device", *words, "--json")
    assert (result.code, result.json["error"]) == (2, "DeviceError")
    assert expected in result.json["expected"]


def test_a_server_needs_its_tracker(mpq: Mpq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpq_compile.runtime.serve._TRACKER_S", 0.3)
    result = mpq("device", "serve", "--key", "k", "--tracker", "127.0.0.1:1", "--json")
    assert (result.code, result.json["message"]) == (2, "the tracker cannot be reached")
    assert result.json["where"] == "tracker 127.0.0.1:1"
    assert "mpq device tracker" in result.json["remedy"]


@contextmanager
def service(*words: object) -> Iterator[subprocess.Popen[str]]:
    """Run a verb that does not end by itself, with ``--json``."""
    command = [sys.executable, "-m", "mpq_compile", "device", *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_until_it_is_ended_says_where_it_listens(servers: Farm, number: int) -> None:
    port, tracker = free_port(), f"127.0.0.1:{servers.port}"
    verbs = {
        ("tracker", "--port", port): {"tracker": f"127.0.0.1:{port}", "port": port},
        ("serve", "--key", "said", "--tracker", tracker, "--port", free_port()): {
            "target": servers.target("said"),
            "tracker": tracker,
            "key": "said",
        },
    }
    for words, said in verbs.items():
        with service(*words) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert said.items() <= json.loads(first).items()
            process.send_signal(number)
            rest, err = process.communicate(timeout=30)
        assert (process.returncode, rest) == (0, ""), err
        assert err.endswith("stopped\n")


def test_an_unknown_key_is_answered_with_the_known_ones(
    mpq: Mpq, servers: Farm, job: tuple[str, ...]
) -> None:
    result = mpq("profile", *job, "--target", servers.target("cl"), "--json")
    assert (result.code, result.json["found"]) == (2, KEY)
    assert f"did you mean '{KEY}'" in result.json["remedy"]


def test_a_port_that_is_taken(mpq: Mpq, servers: Farm) -> None:
    tracker = f"127.0.0.1:{servers.port}"
    result = mpq("device", "tracker", "--port", servers.port, "--json")
    assert (result.code, result.json["message"]) == (2, "cannot listen there")
    # A server takes no other port than the one it was told: a tunnel leads there.
    with service("serve", "--key", "k", "--tracker", tracker, "--port", servers.port) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["message"]) == (2, "cannot listen there")


def test_the_verbs_reach_a_device(
    mpq: Mpq, servers: Farm, job: tuple[str, ...], place: Path, tmp_path: Path
) -> None:
    target, plan, net = servers.target(KEY), tmp_path / "plan.json", tmp_path / "net"
    options = ("--target", target, "--candidates", "fp32,w8a8", "--json")
    assert mpq("profile", *job, *options).json["complete"]
    planned = mpq("plan", *job, *options, "--latency-ms", "1000", "-o", plan)
    assert planned.json["target"] == target
    # What was taken in a noisy moment may be measured again, and nothing else.
    assert mpq("profile", *job, *options).json["complete"]
    assert mpq("compile", *job, "--plan", plan, "-o", net, "--json").code == 0
    written = json.loads((net / "manifest.json").read_text(encoding="utf-8"))
    assert written["provenance"]["reached"] == target
    assert mpq("verify", net, "--processes", "2", "--json").json["status"] == "accepted"
    data = ("--data", place / "data.npz")
    for name, elsewhere in (("there", ()), ("here", ("--target", "local"))):
        made = mpq("run", net, *data, "-o", tmp_path / name, *elsewhere, "--json")
        assert (made.json["samples"], made.json["round_trip"]) == (16, name == "there")
    with np.load(tmp_path / "there") as there, np.load(tmp_path / "here") as here:
        assert np.array_equal(there["output0"], here["output0"])


def test_an_artifact_whose_device_is_gone(
    mpq: Mpq, artifact: Path, place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(artifact, folder)
    manifest, _ = open_artifact(folder)
    seal(folder, replace(manifest, provenance={"reached": "rpc://127.0.0.1:1/gone"}))
    run = ("run", folder, "--data", place / "data.npz", "--json")
    gone = mpq(*run)
    assert (gone.code, gone.json["error"]) == (2, "DeviceError")
    assert gone.json["message"].startswith("the artifact's own device cannot be reached")
    assert "--target local" in gone.json["remedy"]
    assert mpq("verify", folder, "--json").json["message"] == gone.json["message"]
    assert mpq(*run, "--target", "local").json["samples"] == 16
    assert mpq(*run, "--target", "bit_serial").json["message"] == "nothing runs on this target"
