"""Files that commands read: plans, policies and problems (.json). Imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from mpq_compile.errors import PlanError
from mpq_compile.search.policy import Policy
from mpq_compile.types import Plan

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"


def read_json(path: Path) -> Any:
    """Parse a JSON file, or standard input for ``-``; raise ``PlanError`` where it is not JSON."""
    place = "standard input" if str(path) == "-" else str(path)
    if str(path) != "-" and not path.is_file():
        raise PlanError(
            "no such file",
            where=str(path),
            expected="a JSON file",
            found="a folder" if path.is_dir() else "nothing",
            remedy="correct the path",
        )
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, found = f"{place}:{error.lineno}", f"{error.msg} at column {error.colno}"
    except (UnicodeDecodeError, RecursionError) as error:
        found = str(error)
    raise PlanError(
        "the file is not JSON",
        where=place,
        expected="one JSON object in UTF-8",
        found=found,
        remedy="correct the file, or write it again",
    )


def schema(name: str) -> dict[str, Any]:
    """Return a published JSON schema: ``plan``, ``policy`` or ``problem``."""
    text = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def read_plan(path: Path) -> Plan:
    """Read a plan that ``mpq plan -o`` wrote, or that of an artifact, which is checked first.

    Raises:
        PlanError: The file is not a plan.
        ArtifactError: The folder is no artifact, or a damaged one.
    """
    if path.is_dir():
        from mpq_compile.runtime.artifact import open_artifact

        return open_artifact(path)[1]
    return Plan.from_json(_valid(path, "plan", "mpq plan"))


def read_policy(path: Path) -> Policy:
    """Read a policy that ``mpq search -o`` wrote; raise ``PlanError`` where it is none."""
    return Policy.from_json(_valid(path, "policy", "mpq search"))


def _valid(path: Path, kind: str, verb: str) -> Any:
    """Return the data of a JSON file that its schema allows."""
    data = read_json(path)
    errors = sorted(Draft202012Validator(schema(kind)).iter_errors(data), key=_depth)
    if errors:
        raise PlanError(
            f"not a {kind}",
            where=f"{path}: {errors[0].json_path}",
            expected=f"a {kind} as `{verb} -o` writes it (schemas/{kind}.json)",
            found=errors[0].message[:200],
            remedy=f"make the {kind} again with `{verb}`",
        )
    return data


def _depth(error: Any) -> int:
    return len(error.absolute_path)
