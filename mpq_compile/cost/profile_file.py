"""A profile's YAML file: read with its line numbers, and checked against the published schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mpq_compile.errors import ProfileError, nearest

PROFILE_DIR = Path(__file__).resolve().parents[1] / "hw_profiles"
SCHEMA_PATH = PROFILE_DIR / "schema.json"

_STRING_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong at ``keys``, the way from the root of the file to it."""

    keys: tuple[str | int, ...]
    message: str
    expected: object = None
    found: object = None
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """The data of a YAML file together with the nodes that know their lines."""

    path: Path
    data: Any
    root: yaml.Node

    def line(self, keys: Sequence[str | int]) -> int:
        """Return the line (from 1) of what stands at ``keys``, or of its nearest ancestor."""
        node, line = self.root, self.root.start_mark.line
        for key in keys:
            step = _step(node, key)
            if step is None:
                break
            node, line = step
        return line + 1

    def error(self, finding: Finding) -> ProfileError:
        """Return the finding as an error that names file and line."""
        return ProfileError(
            finding.message,
            where=f"{self.path}:{self.line(finding.keys)}",
            expected=finding.expected,
            found=finding.found,
            remedy=finding.remedy,
        )


def _step(node: yaml.Node, key: str | int) -> tuple[yaml.Node, int] | None:
    """Return the child at ``key`` and its line (from 0); None where there is none."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(v, k.start_mark.line) for k, v in node.value if k.value == key]
        return pairs[-1] if pairs else None
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key].start_mark.line
    return None


def read_document(path: Path) -> Document:
    """Read a YAML file; raise ``ProfileError`` with file and line where it is malformed."""
    text = _read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise _malformed(path, 1, "the file is empty", "nothing")
        _check_keys(path, root)
        return Document(path=path, data=loader.construct_document(root), root=root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise _malformed(path, line, "malformed YAML", error.problem) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _malformed(path, 1, "malformed YAML", error) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ProfileError(
            "no such profile file",
            where=str(path),
            expected="a YAML file",
            found="nothing",
            remedy="correct the path, or name a profile of `mpq targets list`",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _malformed(path, 1, "the file cannot be read", error) from error


def _malformed(path: Path, line: int, message: str, found: object) -> ProfileError:
    return ProfileError(
        message,
        where=f"{path}:{line}",
        expected="a YAML mapping in UTF-8",
        found=found,
        remedy="correct the file at this line",
    )


def _check_keys(path: Path, root: yaml.Node) -> None:
    """Refuse a key that is not a string, or that stands twice in one mapping."""
    for mapping in _mappings(root):
        seen: set[str] = set()
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE_TAG:
                continue
            if key.tag != _STRING_TAG:
                raise _malformed(path, line, "a key that is not a string", repr(key.value))
            if key.value in seen:
                raise _malformed(path, line, f"the key {key.value!r} stands twice", key.value)
            seen.add(key.value)


def _mappings(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yield each mapping once; aliases may form a cycle."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            todo += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


@cache
def _validator() -> Any:
    return Draft202012Validator(json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))


def schema_findings(data: object) -> list[Finding]:
    """Return where ``data`` violates the published schema."""
    findings: list[Finding] = []
    errors = list(_validator().iter_errors(data))
    unknown = {tuple(error.absolute_path) for error in errors if error.validator == "enum"}
    for error in errors:
        # Which of the known values would fit the other keys is no matter while it is none of them.
        if error.validator == "const" and tuple(error.absolute_path) in unknown:
            continue
        findings += [f for f in _translated(error) if f not in findings]
    return findings


def _translated(error: Any) -> list[Finding]:
    """Turn one error of jsonschema into findings with expected, found and remedy."""
    keys = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        return [_unknown_key(keys, key, error.schema) for key in _extra_keys(error)]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [_missing_keys(keys, missing)]
    return [
        Finding(
            keys=keys,
            message=f"{_spelled(keys)} is not valid",
            expected=_expected(error),
            found=shortened(error.instance),
            remedy=_remedy(error),
        )
    ]


def _remedy(error: Any) -> str:
    """Return what to do about a value that is not valid."""
    if error.validator == "enum":
        return nearest(str(error.instance), error.validator_value)
    if error.validator == "type" and isinstance(error.instance, str):
        with suppress(ValueError):
            return f"write {float(error.instance)!r}: YAML reads {error.instance!r} as text"
    return "correct the value"


def _extra_keys(error: Any) -> list[str]:
    """Return the keys that the schema does not allow, which jsonschema names only in prose."""
    patterns = error.schema.get("patternProperties", {})
    allowed = error.schema.get("properties", {})
    validator = _validator()
    return [
        key
        for key in error.instance
        if key not in allowed
        and not any(validator.evolve(schema={"pattern": p}).is_valid(key) for p in patterns)
    ]


def _unknown_key(keys: tuple[str | int, ...], key: str, schema: Any) -> Finding:
    allowed = [*schema.get("properties", {})]
    patterns = schema.get("patternProperties", {}).values()
    described = [pattern["description"] for pattern in patterns]
    return Finding(
        keys=(*keys, key),
        message=f"unknown key {key!r} in {_spelled(keys)}",
        expected=", ".join([*allowed, *described]),
        found=repr(key),
        remedy=nearest(key, allowed) if allowed else "correct the name, or leave the key out",
    )


def _missing_keys(keys: tuple[str | int, ...], missing: list[str]) -> Finding:
    return Finding(
        keys=keys,
        message=f"{_spelled(keys)} lacks {', '.join(missing)}",
        expected="the keys " + ", ".join(missing),
        found="none of them",
        remedy="add them; hw_profiles/schema.json describes each",
    )


_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "null": "null",
}
_EXPECTED = {
    "enum": "one of {}",
    "const": "{}",
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "minItems": "at least {} items",
    "minLength": "at least {} characters",
    "minProperties": "at least {} keys",
    "maxProperties": "at most {} keys",
    "uniqueItems": "no item twice",
    "not": "another value",
}


def _expected(error: Any) -> str:
    if error.validator == "type":
        kinds = error.validator_value
        return " or ".join(_TYPES[k] for k in ([kinds] if isinstance(kinds, str) else kinds))
    if error.validator == "pattern" and "description" in error.schema:
        return error.schema["description"]
    value = error.validator_value
    listed = ", ".join(map(str, value)) if isinstance(value, list) else value
    template = _EXPECTED.get(error.validator)
    return template.format(listed) if template else error.message


def _spelled(keys: Sequence[str | int]) -> str:
    """Spell the way to a value: ``operators.linear[2].candidates``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.lstrip(".") or "the profile"


def shortened(value: object, limit: int = 80) -> str:
    """Return ``repr(value)``, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
