"""The JSON records in a model's folder: read with one clear error, written in one step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegraft.errors import BranchError, OutputError


def read_json_record(
    folder: Path | str, name: str, schema: int, *, what: str, made_by: str
) -> dict[str, Any]:
    """The fields of the record `name` in `folder`, without its schema.

    Args:
        folder: of the model.
        name: of the file.
        schema: the version that this code reads.
        what: the file is, for errors.
        made_by: the command that makes such folders, for errors.

    Raises:
        BranchError: there is no such file, it cannot be read, or it is of another schema.
    """
    file = Path(folder) / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BranchError(
            f"{folder}: has no {name}; expected a folder that `{made_by}` made"
        ) from None
    except (OSError, ValueError) as error:
        raise BranchError(f"{file}: cannot be read ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise BranchError(f"{file}: expected schema {schema} of {what}")
    return {key: value for key, value in content.items() if key != "schema"}


def write_json_record(folder: Path | str, name: str, content: Mapping[str, Any]) -> None:
    """Write `content` to the file `name` in `folder`, in one step.

    Raises:
        OutputError: it cannot be written.
    """
    file = Path(folder) / name
    aside = file.with_name(f".{name}.partial")
    try:
        text = json.dumps(dict(content), indent=1, ensure_ascii=False) + "\n"
        aside.write_text(text, encoding="utf-8")
        aside.replace(file)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from None
