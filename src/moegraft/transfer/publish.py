"""The model card of a composed checkpoint, its licence, and its upload to the Hub."""

import re
from pathlib import Path
from typing import Any

from moegraft.checkpoint.card import (
    CARD,
    Licence,
    base_model,
    common_licence,
    public_name,
)
from moegraft.checkpoint.card import card_metadata as metadata_of
from moegraft.checkpoint.card import write_card as write_any_card
from moegraft.config import dump_recipe
from moegraft.errors import OutputError, RecipeError
from moegraft.transfer.plan import Plan
from moegraft.transfer.provenance import public_recipe
from moegraft.transfer.recipe import HOST

__all__ = ["CARD", "Licence", "card_metadata", "check_push", "find_licence", "push", "write_card"]

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def find_licence(plan: Plan) -> Licence:
    """The one licence that the sources' model cards state, or the recipe's.

    Raises:
        RecipeError: two sources state different licences and the recipe names none.
    """
    return common_licence({HOST: plan.host, **plan.donors}, plan.recipe.licence)


def write_card(folder: Path, plan: Plan, licence: Licence, *, title: str) -> None:
    """Write a model card with metadata that the Hub accepts; no local path is in it."""
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
    write_any_card(folder, card_metadata(plan, licence), body)


def card_metadata(plan: Plan, licence: Licence) -> dict[str, Any]:
    """The YAML block of the model card."""
    bases = [base_model(checkpoint) for checkpoint in (plan.host, *plan.donors.values())]
    return metadata_of(bases, "merge", licence, is_moe=plan.host.family.is_moe)


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


def _sources(plan: Plan) -> str:
    donors = ", ".join(f"`{public_name(donor)}`" for donor in plan.donors.values())
    return f"the host `{public_name(plan.host)}`" + (f" and parts of {donors}" if donors else "")
