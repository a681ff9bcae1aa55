"""The model card of a composed checkpoint, its licence, and its upload to the Hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moegraft.checkpoint import Checkpoint
from moegraft.config import dump_recipe
from moegraft.errors import OutputError, RecipeError
from moegraft.transfer.plan import Plan
from moegraft.transfer.provenance import public_name, public_recipe
from moegraft.transfer.recipe import HOST

CARD = "README.md"

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of the result, as a model card states it."""

    identifier: str | None
    """The Hub's identifier; None when no source states one and the recipe is silent."""
    name: str | None = None
    """`license_name`, where the identifier is `other`."""
    link: str | None = None


def find_licence(plan: Plan) -> Licence:
    """The one licence that the sources' model cards state, or the recipe's.

    Raises:
        RecipeError: two sources state different licences and the recipe names none.
    """
    if plan.recipe.licence is not None:
        return Licence(plan.recipe.licence)
    stated = {
        name: licence
        for name, checkpoint in ((HOST, plan.host), *plan.donors.items())
        if (licence := _stated(checkpoint)).identifier is not None
    }
    if len({(licence.identifier, licence.name) for licence in stated.values()}) > 1:
        listed = ", ".join(f"{name}: {licence.identifier}" for name, licence in stated.items())
        raise RecipeError(
            f"the sources' licences differ ({listed}); "
            "say which one the result has with --licence, or 'licence:' in the recipe"
        )
    return next(iter(stated.values()), Licence(None))


def write_card(folder: Path, plan: Plan, licence: Licence, *, title: str) -> None:
    """Write a model card with metadata that the Hub accepts; no local path is in it."""
    front = yaml.safe_dump(card_metadata(plan, licence), sort_keys=False, allow_unicode=True)
    recipe = dump_recipe(public_recipe(plan))
    rows = "\n".join(
        f"| {a.component} | {a.source} | {a.layers or '-'} | {a.experts or '-'} "
        f"| {a.num_tensors} | {a.nbytes:,} |"
        for a in plan.accounts
    )
    exact = (
        "Every tensor is a byte-exact copy from its source."
        if plan.copies_everything
        else "Mixed or cast tensors were computed in float32; all others are byte-exact copies."
    )
    stated = "" if licence.identifier else "\nThe sources' model cards state no licence.\n"
    body = f"""# {title}

Composed with moegraft from {_sources(plan)}. {exact}
Config and tokenizer are the host's.
{stated}
| component | from | layers | experts | tensors | bytes |
| --- | --- | --- | --- | ---: | ---: |
{rows}

The sources' hashes stand in `provenance.json`. The recipe:

```yaml
{recipe}```
"""
    (folder / CARD).write_text(f"---\n{front}---\n\n{body}", encoding="utf-8")


def card_metadata(plan: Plan, licence: Licence) -> dict[str, Any]:
    """The YAML block of the model card."""
    bases = [base_model(checkpoint) for checkpoint in (plan.host, *plan.donors.values())]
    metadata: dict[str, Any] = {}
    if licence.identifier:
        metadata["license"] = licence.identifier
    if licence.name:
        metadata["license_name"] = licence.name
    if licence.link:
        metadata["license_link"] = licence.link
    return metadata | {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": list(dict.fromkeys(bases)),
        "base_model_relation": "merge",
        "tags": ["moegraft", "merge"] + (["moe"] if plan.host.family.is_moe else []),
    }


def base_model(checkpoint: Checkpoint) -> str:
    """`public_name` in the characters that the Hub allows in a repository name."""
    name = re.sub(r"[^\w./-]+|\.\.+|--+", "-", public_name(checkpoint), flags=re.ASCII)
    return name.strip("-.") or "local"


def push(folder: Path, repo: str) -> str:
    """Upload the finished `folder` to the Hub repository `repo`, made if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        OutputError: the Hub refused, or cannot be reached; `folder` stays.
    """
    from huggingface_hub import HfApi, errors

    check_push(repo)
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="model", exist_ok=True)
        done = api.upload_folder(
            folder_path=folder, repo_id=repo, commit_message="Upload a checkpoint made by moegraft"
        )
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        why = " ".join(str(error).split())[:300]
        raise OutputError(f"--push {repo}: {why}; the checkpoint stays in {folder}") from None
    return str(done.commit_url)


def check_push(repo: str) -> None:
    """Check what can be checked before anything is written: the name and that there is a token.

    Raises:
        RecipeError: `repo` is no `org/name`, or no token is stored.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo_is_valid = False
    else:
        repo_is_valid = _REPO.fullmatch(repo) is not None
    if not repo_is_valid:
        raise RecipeError(f"--push {repo}: expected the name of a Hub repository, org/name")
    if get_token() is None:
        raise RecipeError(f"--push {repo}: no Hub token; run `hf auth login` or set HF_TOKEN")


def _stated(checkpoint: Checkpoint) -> Licence:
    file = checkpoint.path / CARD
    if not file.is_file():
        return Licence(None)
    match = _FRONT_MATTER.match(file.read_text(encoding="utf-8", errors="replace"))
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        found = None
    if not isinstance(found, Mapping) or not found.get("license"):
        return Licence(None)
    texts = (found.get(key) for key in ("license", "license_name", "license_link"))
    identifier, name, link = (None if text is None else str(text) for text in texts)
    return Licence(identifier, name, link)


def _sources(plan: Plan) -> str:
    donors = ", ".join(f"`{public_name(donor)}`" for donor in plan.donors.values())
    return f"the host `{public_name(plan.host)}`" + (f" and parts of {donors}" if donors else "")
