#!/usr/bin/env bash
# Builds the sdist and from it the wheel, installs the wheel alone in a new environment, and uses it
# from an empty folder. Dependencies come from the environment of the given Python, so that nothing
# is downloaded.
#
#     tests/smoke/wheel.sh [PYTHON]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$(realpath --no-symlinks "${1:-$root/.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --no-isolation --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; exit 1; }

"$python" -m venv --without-pip "$work/venv"
"$python" -m pip --python "$work/venv/bin/python" --disable-pip-version-check --quiet \
    install --no-deps --no-index "$work"/dist/*.whl
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# A path in a .pth file comes after the environment's own packages, and its own .pth files are not
# read: an editable install there stays out of sight.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/dependencies.pth"

mkdir "$work/empty"
cd "$work/empty"
unset PYTHONPATH
export MPQ_DB="$work/measurements.sqlite" MPQ_TUNE=0 XDG_CACHE_HOME="$work/cache" MPQ_PROGRESS=0
bin="$work/venv/bin"
"$bin/python" -m mpq_compile doctor
"$bin/mpq" --version
"$bin/mpq" targets list --json | "$bin/python" -c \
    'import json, sys; assert len(json.load(sys.stdin)["targets"]) >= 8'
"$bin/python" "$here/installed.py" "$site" "$work"/dist/*.tar.gz
