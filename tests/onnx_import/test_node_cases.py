"""Every operator of the table against ONNX's own cases for it."""

from __future__ import annotations

import pytest
from node_cases import OPERATORS_LEFT_OUT, SKIPPED, cases, check, reason

from mpq_compile.errors import CaptureError, UnsupportedOpError
from mpq_compile.onnx_import.operators import OPERATORS


@pytest.mark.parametrize("name", cases())
def test_outputs_are_those_expected(name: str) -> None:
    case, why = cases()[name], reason(name)
    if why is not None:
        with pytest.raises((CaptureError, AssertionError)):
            check(case)
        pytest.skip(why)
    try:
        check(case)
    except UnsupportedOpError as error:
        if error.found in OPERATORS_LEFT_OUT or "no operator of ONNX itself" in error.message:
            pytest.skip(error.message)
        raise
    except CaptureError as error:
        if "has a type that is not read" in error.message:
            pytest.skip(f"{error.message}: {error.found}")
        raise


def test_the_tables_are_not_stale() -> None:
    assert not OPERATORS_LEFT_OUT & set(OPERATORS)
    for why in SKIPPED:
        assert any(reason(name) == why for name in cases()), why


def test_every_operator_has_a_case() -> None:
    called = {node.op_type for case in cases().values() for node in case.model.graph.node}
    ours = {"Linear", "Recurrent"}
    assert set(OPERATORS) - called == ours
