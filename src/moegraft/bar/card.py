"""Model cards of branches, merged models and models whose routers were trained further."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegraft.bar.branches import Branch
from moegraft.bar.manifest import BRANCH, Manifest
from moegraft.bar.record import MERGE, MergeRecord
from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.card import (
    Licence,
    base_models,
    card_metadata,
    hub_name,
    made_from,
    public_name,
    stated_licence,
    write_card,
)

_BAR = "BAR (arXiv:2604.18473)"
_NO_LICENCE = "\nThe sources' model cards state no licence.\n"


def write_branch_card(
    folder: Path,
    manifest: Manifest,
    licence: Licence,
    bases: Sequence[str],
    *,
    num_experts: int,
) -> None:
    """Write the card of a branch that was just made or trained.

    Args:
        folder: of the branch.
        manifest: of the branch.
        licence: of the branch.
        bases: names of the models that it is made of.
        num_experts: per layer.
    """
    anchor, pretrained = manifest.anchor["name"], manifest.start.get("pretrained")
    if manifest.kind == "appended":
        made = (
            f"{manifest.num_appended} of {num_experts} experts per layer were appended to "
            f"`{anchor}`, whose own tensors stay frozen"
        )
    else:
        start = f"`{pretrained['name']}`" if pretrained else "the anchor too"
        made = (
            f"The FFN of the anchor `{anchor}`, frozen, beside a domain expert that started from "
            f"the FFN of {start}; both are always active"
        )
    tokens = f" New tokens: {_code(manifest.tokens)}." if manifest.tokens else ""
    body = f"""# Branch of {anchor} for {manifest.domain}

{made}. Made with moegraft after {_BAR}, to be merged with branches for other domains.{tokens}
{"" if licence.identifier else _NO_LICENCE}
{_stages(manifest.stages) or "It has not been trained yet."}

`{BRANCH}` holds hashes of what must not move, and the settings and data of every stage.
"""
    relation = "finetune" if manifest.stages or len(set(bases)) == 1 else "merge"
    datasets = [*_datasets(manifest.stages)]
    metadata = card_metadata(bases, relation, licence, is_moe=True, datasets=datasets)
    write_card(folder, metadata, body)


def branch_bases(branch: Branch) -> list[str]:
    """Names of the models that a branch is made of: by its card, else by its manifest."""
    pretrained = branch.manifest.start.get("pretrained")
    named = [branch.manifest.anchor, *([pretrained] if pretrained else [])]
    return made_from(branch.checkpoint) or [hub_name(str(one["name"])) for one in named]


def write_merge_card(
    folder: Path,
    record: MergeRecord,
    licence: Licence,
    bases: Sequence[str],
    *,
    title: str,
    is_moe: bool,
) -> None:
    """Write the card of a merged model, its routers trained or not.

    Args:
        folder: of the model.
        record: its merge.json.
        licence: of the model.
        bases: names of the models that it is made of.
        title: the model's name.
        is_moe: whether it has experts.
    """
    anchor = record.anchor["name"]
    first = f"| 0 | the anchor `{anchor}` | |" if record.method != "appended" else None
    rows = [] if first is None or not is_moe else [first]
    rows += [_expert(entry) for entry in record.experts]
    tokens = f" New tokens: {_code(record.tokens)}." if record.tokens else ""
    table = "\n".join(rows)
    body = f"""# {title}

Merged with moegraft by method `{record.method}` ({_BAR}) from `{anchor}` and models for \
{", ".join(record.domains)}.{tokens} {_routers(record) if is_moe else ""}
{"" if licence.identifier else _NO_LICENCE}
| expert | from | trained on |
| --- | --- | --- |
{table}

`{MERGE}` records each source by content, how shared tensors became one, and what followed.
"""
    stages = [*record.stages, *(stage for entry in record.experts for stage in entry["stages"])]
    datasets = [*_datasets(stages)]
    metadata = card_metadata(bases, "merge", licence, is_moe=is_moe, datasets=datasets)
    write_card(folder, metadata, body)


def write_tuned_card(
    folder: Path, checkpoint: Checkpoint, stage: Mapping[str, Any], *, title: str
) -> None:
    """Write the card of a model of which some components were trained further, as by `heal`.

    Args:
        folder: of the new model.
        checkpoint: what it was.
        stage: `tune.Tuned.stage`.
        title: the model's name.
    """
    licence = stated_licence(checkpoint)
    trained = stage["stage"].replace("+", ", ")
    before, after = stage["loss_before"], stage["loss_after"]
    rows = "\n".join(f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in before)
    body = f"""# {title}

`{public_name(checkpoint)}` with only these components trained further by moegraft: {trained} \
({stage["tokens"]:,} tokens). Every other tensor is byte for byte as it was.
{"" if licence.identifier else _NO_LICENCE}
| held-out loss (nats/token) | before | after |
| --- | ---: | ---: |
{rows}
"""
    bases = base_models(checkpoint)
    relation = "finetune" if len(bases) == 1 else "merge"
    write_card(folder, card_metadata(bases, relation, licence, is_moe=True), body)


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return ""
    rows = "\n".join(
        f"| {stage['stage']} | {stage.get('opened', '')} | {stage.get('steps', '')} "
        f"| {stage['tokens']:,} | {', '.join(_sources([stage]))} |"
        for stage in stages
    )
    return f"| stage | opened | steps | tokens | data |\n| --- | --- | ---: | ---: | --- |\n{rows}"


def _expert(entry: Mapping[str, Any]) -> str:
    places = ", ".join(map(str, entry["experts"])) or "averaged"
    told = ", ".join(f"{stage['stage']} {stage['tokens']:,} tokens" for stage in entry["stages"])
    return f"| {places} | {entry['domain']} | {told} |"


def _routers(record: MergeRecord) -> str:
    tokens = sum(stage["tokens"] for stage in record.stages)
    return f"Its routers were trained on {tokens:,} tokens." if tokens else "Routers are untrained."


def _code(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"`{token}`" for token in tokens)


def _sources(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for stage in stages:
        for part in stage.get("data", ()):
            yield from part.get("sources", ())


def _datasets(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The data sets on the Hub among what was trained on; files have no folder in the record."""
    for source in _sources(stages):
        if source.count("/") == 1:
            yield hub_name(source.partition(":")[0])
