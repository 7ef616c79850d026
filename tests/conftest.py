"""What all tests share: the thread count before TVM is imported, and a database of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mpq_compile.kernels.tier import host_tiers
from mpq_compile.runtime.executor import request_amx
from mpq_compile.runtime.threads import thread_count

# TVM reads its thread count when it is first imported.
thread_count()
if any(tier.dot == "amx" for tier in host_tiers()):
    request_amx()  # tests of kernels call them without an executor, which would ask
# A busy machine is not waited for: no test depends on how long anything takes.
os.environ["MPQ_PATIENCE"] = "0"
# Only the tests of tuning search schedules: it takes seconds a network.
os.environ["MPQ_TUNE"] = "0"
# A test's own database decides what is measured, on whatever machine.
os.environ["MPQ_SHIPPED"] = "0"
# What a test evaluates is evaluated, not remembered from the last run.
os.environ["MPQ_EVALUATIONS"] = "0"
# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
# Benchmarks and tests read the same real networks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def measurements_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep measurements of tests away from the user's."""
    path = tmp_path_factory.mktemp("measurements") / "db.sqlite"
    before = os.environ.get("MPQ_DB")
    os.environ["MPQ_DB"] = str(path)
    yield path
    if before is None:
        del os.environ["MPQ_DB"]
    else:
        os.environ["MPQ_DB"] = before
