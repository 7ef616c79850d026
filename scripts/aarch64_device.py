#!/usr/bin/env python3
"""An emulated aarch64 device: QEMU's user mode, Debian's Python, TVM's own wheels.

    scripts/aarch64_device.py setup                        # once: downloads 120 MB, unpacks 450 MB
    mpq device tracker &
    scripts/aarch64_device.py serve --tracker 127.0.0.1:9190 --key emulated-aarch64

It needs ``apt-get`` and ``dpkg-deb`` (any Debian or Ubuntu), ``qemu-user-static`` to serve, and no
root rights: nothing is installed, packages are unpacked into a folder that QEMU looks into first.
What runs there shows whether results are right. Its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
QEMU = "qemu-aarch64-static"
SUITE, PYTHON = "bookworm", "3.11"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = (f"python{PYTHON}", "libstdc++6")
# Both ends must have the same versions: those of this interpreter.
SAME_VERSIONS = ("apache-tvm", "apache-tvm-ffi")
WHEELS = ("numpy", "pyyaml")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# Bits of AT_HWCAP and AT_HWCAP2 that kernels ask for, by their names in /proc/cpuinfo.
HWCAP = {"fp": 0, "asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22}
HWCAP2 = {"i8mm": 13, "bf16": 14}

APT_CONFIGURATION = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
"""


def default_folder() -> Path:
    """Return ``MPQ_AARCH64_ROOT``, else a folder in the user's cache."""
    given = os.environ.get("MPQ_AARCH64_ROOT")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "mpq_compile" / "aarch64"


def wanted() -> dict[str, str]:
    """Return the versions that the device must have."""
    return {name: metadata.version(name) for name in SAME_VERSIONS}


def missing(folder: Path) -> str | None:
    """Return what is missing to serve from ``folder``, or None."""
    if shutil.which(QEMU) is None:
        return "needs Debian's qemu-user-static"
    stamp = folder / "versions.json"
    found = json.loads(stamp.read_text(encoding="ascii")) if stamp.is_file() else None
    if found == wanted():
        return None
    state = "is not there" if found is None else f"has {found}, not {wanted()}"
    return f"the device in {folder} {state}: run scripts/aarch64_device.py setup"


def set_up(folder: Path, mirror: str) -> None:
    """Download and unpack Python, TVM and NumPy for aarch64 into ``folder``."""
    (folder / "versions.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "cpus", ignore_errors=True)
    for name in ("root", "site"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for package in _debian_packages(folder / "apt", mirror):
        _run(["dpkg-deb", "-x", package, folder / "root"])
    for wheel in _wheels(folder / "wheels"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    for name in ("apt", "wheels"):
        shutil.rmtree(folder / name)
    (folder / "versions.json").write_text(json.dumps(wanted()), encoding="ascii")
    print(f"the device is in {folder}")


def _debian_packages(folder: Path, mirror: str) -> list[Path]:
    """Download the packages and what they need, with a configuration of apt's own."""
    archives = folder / "cache" / "archives"
    shutil.rmtree(folder, ignore_errors=True)
    for made in (archives / "partial", folder / "state" / "lists" / "partial"):
        made.mkdir(parents=True)
    (folder / "status").touch()
    source = f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"
    (folder / "sources.list").write_text(source, encoding="ascii")
    (folder / "conf").write_text(APT_CONFIGURATION.format(folder=folder), encoding="utf-8")
    environment = os.environ | {"APT_CONFIG": str(folder / "conf")}
    _run(["apt-get", "-q", "update"], environment)
    _run(["apt-get", "-q", "-y", "install", "--download-only", *PACKAGES], environment)
    return sorted(archives.glob("*.deb"))


def _wheels(folder: Path) -> list[Path]:
    """Download the wheels for aarch64."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pins = [f"{name}=={version}" for name, version in wanted().items()]
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", folder, *options, *platforms]
    _run([*command, *pins, *WHEELS])
    return sorted(folder.glob("*.whl"))


def _run(command: Sequence[object], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")


def command(folder: Path, cpu: str, program: Path) -> list[str]:
    """Return the command that runs a program of the device on a CPU model of QEMU's."""
    return _emulated(cpu, _view(folder, cpu), program)


def _emulated(cpu: str, view: Path, program: Path) -> list[str]:
    return [QEMU, "-cpu", cpu, "-L", str(view), str(program)]


def _python(folder: Path) -> Path:
    return folder / "root" / "usr" / "bin" / f"python{PYTHON}"


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the device's Python."""
    paths = [str(folder / "site"), str(REPOSITORY)]
    home = str(folder / "root" / "usr")
    return os.environ | {"PYTHONHOME": home, "PYTHONPATH": os.pathsep.join(paths)}


def _view(folder: Path, cpu: str) -> Path:
    """Return the folder that a CPU model looks into first: the root, and a cpuinfo of its own.

    Older versions of QEMU show the host's /proc/cpuinfo, by which kernels would be chosen.
    """
    view = folder / "cpus" / cpu
    if (view / "proc" / "cpuinfo").is_file():
        return view
    (view / "proc").mkdir(parents=True, exist_ok=True)
    for path in (folder / "root").iterdir():
        if not (view / path.name).is_symlink():
            (view / path.name).symlink_to(path)
    (view / "proc" / "cpuinfo").write_text(_cpuinfo(folder, cpu), encoding="ascii")
    return view


def _cpuinfo(folder: Path, cpu: str) -> str:
    """Return a /proc/cpuinfo of what the emulated CPU tells its programs."""
    ask = "import ctypes; f = ctypes.CDLL(None).getauxval; f.restype = ctypes.c_ulong"
    ask += "; print(f(ctypes.c_ulong(16)), f(ctypes.c_ulong(26)))"
    words = [*_emulated(cpu, folder / "root", _python(folder)), "-S", "-c", ask]
    environment = _environment(folder)
    answer = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    first, second = map(int, answer.stdout.split())
    flags = [name for name, bit in HWCAP.items() if first >> bit & 1]
    flags += [name for name, bit in HWCAP2.items() if second >> bit & 1]
    lines = f"Features\t: {' '.join(flags)}\nCPU implementer\t: QEMU\nCPU part\t: {cpu}\n\n"
    return "".join(f"processor\t: {n}\n{lines}" for n in range(os.cpu_count() or 1))


def serve(folder: Path, cpu: str, arguments: Sequence[str]) -> None:
    """Become the server of the device; see ``mpq_compile.runtime.serve``."""
    reason = missing(folder)
    if reason:
        raise SystemExit(reason)
    words = [*command(folder, cpu, _python(folder)), "-m", "mpq_compile.runtime.serve", *arguments]
    os.execvpe(words[0], words, _environment(folder))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=default_folder(), help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    setup = verbs.add_parser("setup", help="download and unpack")
    setup.add_argument("--mirror", default=MIRROR, help="of Debian; default: %(default)s")
    server = verbs.add_parser("serve", help="other options are those of mpq_compile.runtime.serve")
    server.add_argument("--cpu", default="max", help="a model of QEMU's; default: %(default)s")
    given, rest = parser.parse_known_args()
    root = given.root.resolve()
    if given.verb == "serve":
        serve(root, given.cpu, rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    set_up(root, given.mirror)


if __name__ == "__main__":
    main()
