"""`moegraft bar adapt`: train a branch in stages, each with its own freeze set."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.bar_branch import recipe_of
from moegraft.cli.steps import say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import RecipeError

_Data = list[str] | None
_STAGES = ("mid", "sft", "dpo", "rl")


def adapt(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe of stages (YAML).")] = None,
    *,
    branch: Annotated[str | None, typer.Option(help="The branch's folder.")] = None,
    mid: Annotated[_Data, typer.Option(help="Text to mid-train on; repeatable.")] = None,
    sft: Annotated[_Data, typer.Option(help="Chats to finetune on; repeatable.")] = None,
    dpo: Annotated[_Data, typer.Option(help="Comparisons to learn from; repeatable.")] = None,
    rl: Annotated[_Data, typer.Option(help="Tasks with verifiers; repeatable.")] = None,
    general: Annotated[
        _Data, typer.Option(metavar="STAGE=DATA", help="General mix beside it; repeatable.")
    ] = None,
    setting: Annotated[
        _Data,
        typer.Option(
            "--set", metavar="STAGE.KEY=VALUE", help="As sft.learning_rate=2e-5; repeatable."
        ),
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Train the expert by factors of this rank, then fold.")
    ] = None,
    as_released: Annotated[
        bool | None, typer.Option("--as-released", help="Open what the authors' scripts open.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of data order and sampling; default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, ...")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights in training; default float32.")
    ] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16", help="Compute in bfloat16.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; the same command resumes it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each stage opens, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Train a branch: mid-training, finetuning, preferences, verifiable rewards."""
    from moegraft.bar.stages import AdaptRecipe

    data = {"mid": mid, "sft": sft, "dpo": dpo, "rl": rl}
    stages = _stages({k: v for k, v in data.items() if v}, general or [], setting or [], lora)
    flags = {
        "branch": branch,
        "stages": stages or None,
        "as_released": as_released,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "bf16": bf16,
        "gradient_checkpointing": gradient_checkpointing,
    }
    if recipe is None and branch is not None and not stages:
        raise RecipeError("bar adapt: no stage; expected data with --mid, --sft, --dpo or --rl")
    found = recipe_of(AdaptRecipe, recipe, flags, ("branch", "stages"), "bar adapt")
    if out is None and not dry_run:
        raise RecipeError("bar adapt: expected --out DIR, or --dry-run to print the plan only")
    _adapt(found, None if dry_run else out, as_json=as_json)


def _adapt(recipe: Any, out: Path | None, *, as_json: bool) -> None:
    from moegraft.bar.adapt import RESULT, adapt, plan_adapt
    from moegraft.cli.bar_tables import show_stages, show_trained
    from moegraft.train.data import hide_progress

    plan = plan_adapt(recipe)
    if os.environ.get("RANK", "0") != "0":  # the first of several processes tells
        if out is not None:
            adapt(recipe, out)
        return
    if not as_json:
        show_stages(stdout_console(), plan)
    if out is None:
        if as_json:
            write_json({"plan": plan})
        return
    hide_progress()
    announced: set[str] = set()
    with show_steps("steps") as tell:

        def on_step(stage: str, done: int, total: int) -> None:
            if stage not in announced:
                announced.add(stage)
                say(f"stage {stage}: {total:,} steps")
            tell(done, total)

        manifest = adapt(recipe, out, on_step=on_step)
    if as_json:
        write_json({"plan": plan, "stages": [dict(stage) for stage in manifest.stages]})
    else:
        show_trained(stdout_console(), manifest.stages)
    say(f"wrote {out / RESULT}; nothing that was frozen has moved")


def _stages(
    data: dict[str, list[str]], general: list[str], settings: list[str], lora: int | None
) -> list[dict[str, Any]]:
    """The stages that flags describe, in the order in which they run."""
    import yaml

    found: dict[str, dict[str, Any]] = {
        stage: {"stage": stage, "data": data[stage]} for stage in _STAGES if stage in data
    }
    for value in general:
        stage, _, source = value.partition("=")
        _known(found, stage, f"--general {value}", "STAGE=DATA")
        found[stage].setdefault("general", []).append(source)
    for value in settings:
        place, _, text = value.partition("=")
        stage, _, key = place.partition(".")
        _known(found, stage, f"--set {value}", "STAGE.KEY=VALUE")
        if not key or not text.strip():
            raise RecipeError(f"--set {value}: expected STAGE.KEY=VALUE")
        try:
            found[stage][key] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise RecipeError(f"--set {value}: the value is no YAML") from None
    for stage in found.values():
        if lora is not None:
            stage.setdefault("lora", lora)
    return [*found.values()]


def _known(found: dict[str, Any], stage: str, flag: str, form: str) -> None:
    if stage not in found:
        have = ", ".join(found) or "none"
        raise RecipeError(f"{flag}: expected {form} with a stage that has data ({have})")


def _number(value: Any) -> Any:
    """YAML reads 2e-5 as text; as a setting it is a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
