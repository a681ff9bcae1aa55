"""What a model card must say of a checkpoint: its public name, its licence, what it is made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from moegraft.checkpoint.reader import Checkpoint
from moegraft.errors import OutputError, RecipeError

CARD = "README.md"
Relation = Literal["merge", "finetune"]
"""What the Hub calls the way from the base models to this one."""

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_CACHED = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)")
_TAG = "moegraft"


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of a model, as its card states it."""

    identifier: str | None
    """The Hub's identifier; None when no source states one and nobody said."""
    name: str | None = None
    """`license_name`, where the identifier is `other`."""
    link: str | None = None


def common_licence(sources: Mapping[str, Checkpoint], told: str | None) -> Licence:
    """The one licence that the sources' model cards state, or the one that was told.

    Args:
        sources: what the result is made of, by the name that an error calls it.
        told: the result's licence where the user has said it.

    Raises:
        RecipeError: two sources state different licences and nobody said which one holds.
    """
    if told is not None:
        return Licence(told)
    stated = {
        name: licence
        for name, checkpoint in sources.items()
        if (licence := stated_licence(checkpoint)).identifier is not None
    }
    if len({(licence.identifier, licence.name) for licence in stated.values()}) > 1:
        listed = ", ".join(f"{name}: {licence.identifier}" for name, licence in stated.items())
        raise RecipeError(
            f"the sources' licences differ ({listed}); "
            "say which one the result has with --licence, or 'licence:' in the recipe"
        )
    return next(iter(stated.values()), Licence(None))


def stated_licence(checkpoint: Checkpoint) -> Licence:
    """What the checkpoint's own model card says."""
    found = _metadata(checkpoint)
    texts = (found.get(key) for key in ("license", "license_name", "license_link"))
    identifier, name, link = (str(text) if text else None for text in texts)
    return Licence(None) if identifier is None else Licence(identifier, name, link)


def public_name(checkpoint: Checkpoint) -> str:
    """`org/name` of a Hub repository, else the folder's own name; never a path."""
    if checkpoint.revision is not None:
        return checkpoint.source.split("@", 1)[0]
    if checkpoint.source.startswith("nano:"):
        return checkpoint.source
    folder = checkpoint.path.resolve()
    for part in folder.parts:
        if match := _CACHED.fullmatch(part):
            return f"{match['org']}/{match['name']}"
    return folder.name


def base_model(checkpoint: Checkpoint) -> str:
    """`public_name` in the characters that the Hub allows in a repository name."""
    return hub_name(public_name(checkpoint))


def made_from(checkpoint: Checkpoint) -> list[str]:
    """The base models that the card of a local folder of ours names; empty for any other."""
    found = _metadata(checkpoint)
    own, tags = found.get("base_model"), found.get("tags")
    if "/" in public_name(checkpoint) or not (isinstance(tags, list) and _TAG in tags):
        return []
    own = [own] if isinstance(own, str) else own
    return [hub_name(str(name)) for name in own or ()]


def base_models(checkpoint: Checkpoint) -> list[str]:
    """What a model made from this checkpoint is based on: of a folder of ours, what that was."""
    return made_from(checkpoint) or [base_model(checkpoint)]


def hub_name(name: str) -> str:
    """`name` in the characters that the Hub allows in a repository name."""
    found = re.sub(r"[^\w./-]+|\.\.+|--+", "-", name, flags=re.ASCII)
    return found.strip("-.") or "local"


def card_metadata(
    bases: Sequence[str],
    relation: Relation,
    licence: Licence,
    *,
    is_moe: bool,
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """The YAML block of a model card.

    Args:
        bases: names of the base models; each is listed once.
        relation: how the model came from them.
        licence: of the model.
        is_moe: whether it has experts.
        datasets: data sets on the Hub that it was trained on.
    """
    stated = {
        "license": licence.identifier,
        "license_name": licence.name,
        "license_link": licence.link,
    }
    tags = [_TAG, *(["merge"] if relation == "merge" else []), *(["moe"] if is_moe else [])]
    return {
        **{key: value for key, value in stated.items() if value},
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": list(dict.fromkeys(bases)),
        "base_model_relation": relation,
        **({"datasets": list(dict.fromkeys(datasets))} if datasets else {}),
        "tags": tags,
    }


def write_card(folder: Path, metadata: Mapping[str, Any], body: str) -> None:
    """Write a model card with metadata that the Hub accepts.

    Raises:
        OutputError: it cannot be written.
    """
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    try:
        (folder / CARD).write_text(f"---\n{front}---\n\n{body}", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder / CARD}: cannot be written ({error.strerror})") from None


def _metadata(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The YAML block of the checkpoint's model card; empty where there is none that reads."""
    file = checkpoint.path / CARD
    if not file.is_file():
        return {}
    match = _FRONT_MATTER.match(file.read_text(encoding="utf-8", errors="replace"))
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, Mapping) else {}
