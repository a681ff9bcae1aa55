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
    file = Path(folder).expanduser() / name
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = file.parent / "branch"
        near = f" (its branch is {inside})" if (inside / name).is_file() else ""
        raise BranchError(
            f"{folder}: has no {name}; expected a folder that `{made_by}` made{near}"
        ) from None
    except (OSError, ValueError) as error:
        raise BranchError(f"{file}: cannot be read ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != schema:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise BranchError(
            f"{file}: expected schema {schema} of {what}, got {got!r}; "
            f"make the folder anew with `{made_by}`"
        )
    return {key: value for key, value in content.items() if key != "schema"}


def check_stages(where: str, stages: Any) -> None:
    """Check that `stages` is a list of stages, each with a name and a number of tokens.

    Args:
        where: stands before the message.
        stages: of a record.

    Raises:
        BranchError: it is something else.
    """
    if not isinstance(stages, list):
        raise BranchError(f"{where}: stages: expected a list, got {stages!r:.60}")
    for number, stage in enumerate(stages):
        named = isinstance(stage, dict) and isinstance(stage.get("stage"), str)
        if not named or not isinstance(stage.get("tokens"), int):
            raise BranchError(
                f"{where}: stages.{number}: expected a mapping with stage and tokens, "
                f"got {stage!r:.60}"
            )
        for key in ("seconds", "flops", "devices", "trained_numbers", "general_share"):
            if not isinstance(stage.get(key, 0), int | float | None):
                raise BranchError(f"{where}: stages.{number}.{key}: got {stage[key]!r:.60}")


def write_json_record(folder: Path | str, name: str, content: Mapping[str, Any]) -> None:
    """Write `content` to the file `name` in `folder`, in one step.

    Raises:
        OutputError: it cannot be written.
    """
    file = Path(folder).expanduser() / name
    aside = file.with_name(f".{name}.partial")
    try:
        text = json.dumps(dict(content), indent=1, ensure_ascii=False) + "\n"
        aside.write_text(text, encoding="utf-8")
        aside.replace(file)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from None
