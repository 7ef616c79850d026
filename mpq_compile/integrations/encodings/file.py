"""The encodings file: one JSON object, and a safetensors file of integers beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpq_compile.errors import PlanError

FORMAT, VERSION = "mpq-encodings", 1
_SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "encodings.json"


def write_encodings(path: Path, body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the JSON, and the tensors to the file of that name with the suffix ``.safetensors``."""
    beside = path.with_suffix(".safetensors")
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, beside)
    parameters = {"file": beside.name, "sha256": _sha256(beside)}
    whole = {"format": FORMAT, "version": VERSION, "parameters": parameters, **body}
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_encodings(
    source: str | Path | Mapping[str, Any],
) -> tuple[str, Mapping[str, Any], dict[str, Tensor]]:
    """Return what errors call the encodings, their JSON, and the tensors beside it.

    The tensors of a mapping are looked for in the current folder.

    Raises:
        PlanError: A file is missing or damaged, or the JSON is not what the schema says.
    """
    if isinstance(source, Mapping):
        name, folder, body = "encodings", Path(), source
    else:
        name, folder, body = str(source), Path(source).parent, _parsed(Path(source))
    errors = sorted(_validator().iter_errors(body), key=lambda error: len(error.absolute_path))
    if errors:
        raise PlanError(
            "these are no encodings",
            where=f"{name}: {errors[0].json_path}",
            expected="what mpq.export_encodings writes (schemas/encodings.json)",
            found=errors[0].message[:200],
            remedy="correct the entry, or export the encodings again",
        )
    return name, body, _tensors(folder, body)


def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(
            "the encodings cannot be read",
            where=str(path),
            expected="a JSON file that mpq.export_encodings wrote",
            found=str(error)[:200],
            remedy="correct the path, or export the encodings again",
        ) from error


def _tensors(folder: Path, body: Mapping[str, Any]) -> dict[str, Tensor]:
    if "parameters" not in body:
        return {}
    path = folder / body["parameters"]["file"]
    found = _sha256(path) if path.is_file() else "no such file"
    if found != body["parameters"]["sha256"]:
        raise PlanError(
            "the integers of the encodings are damaged or missing",
            where=str(path),
            expected=f"sha256 {body['parameters']['sha256']}",
            found=found,
            remedy="copy the file that lies beside the encodings too; or leave `parameters` out, "
            "to round the model's weights by the scales alone",
        )
    return load_file(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
