"""Each test starts with nothing compiled: Dynamo shares code between models of one class."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import mpq_compile.integrations.torch_backend  # noqa: F401 - registers the backend


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
