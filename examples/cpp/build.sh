#!/bin/sh
# Builds run_artifact with the headers and libraries of TVM's wheels.
#
#   build.sh [PROGRAM]      PYTHON names the interpreter that has them, CXX another compiler.
set -eu
here=$(dirname "$0")
program=${1:-$here/run_artifact}
python=${PYTHON:-python3}

# Located without importing them: that would load the compiler.
locate() {
    "$python" -c 'import sys, importlib.util as u
print(u.find_spec(sys.argv[1]).submodule_search_locations[0])' "$1"
}
tvm=$(locate tvm)
ffi=$(locate tvm_ffi)

if [ -z "${CXX:-}" ]; then
    CXX=c++
    command -v c++ >/dev/null || CXX="$python -m ziglang c++"
fi

# Nothing names libtvm_runtime, yet the library that is loaded needs it: hence --no-as-needed.
# Both libraries may be copied beside the program.
$CXX -std=c++17 -O2 -Wall -Wextra ${CXXFLAGS:-} \
    -isystem "$ffi/include" "$here/run_artifact.cpp" -o "$program" \
    -L"$ffi/lib" -L"$tvm/lib" -Wl,--no-as-needed -ltvm_ffi -ltvm_runtime \
    -Wl,-rpath,'$ORIGIN' -Wl,-rpath,"$ffi/lib" -Wl,-rpath,"$tvm/lib"
