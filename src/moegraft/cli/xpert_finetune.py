"""`moegraft xpert finetune`: started models on downstream tasks, arms compared over seeds."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegraft.cli.evaluation import DataOption, DeviceOption, IncludeOption
from moegraft.cli.options import show_progress, split_list
from moegraft.cli.steps import say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.cli.wide_table import print_wide
from moegraft.cli.xpert_decompose import require_torch
from moegraft.errors import RecipeError
from moegraft.report.words import points


def finetune(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="ARM=M1,M2,...",
            help="Checkpoints of one start, one per seed, or a folder of `seed-*` checkpoints.",
        ),
    ],
    *,
    task: Annotated[list[str], typer.Option(help="A task with training records; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes.")],
    data: DataOption = None,
    include: IncludeOption = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training records.")] = 3.0,
    batch: Annotated[int, typer.Option(help="Packed blocks a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a block.")] = 512,
    rate: Annotated[float, typer.Option(help="Learning rate, cosine after a warm-up.")] = 3e-5,
    records: Annotated[int | None, typer.Option(help="Training records of a task.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of a task that are scored.")] = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Finetune each checkpoint on each task, score it, and compare the arms over their seeds."""
    require_torch("finetune")
    from moegraft.evals.execution import Execution
    from moegraft.xpert.finetune import Finetuning, finetune_arms, table
    from moegraft.xpert.gold_answers import gold_sentence

    how = Finetuning(
        conditions=tuple(split_list(task) or ()),
        num_epochs=epochs,
        batch=batch,
        length=length,
        learning_rate=rate,
        max_records=records,
        limit=limit,
    )
    execution = Execution(device=device, data_dir=data, include=tuple(include or ()))
    with show_steps("training steps") as bar, show_progress("scoring") as on_progress:
        found = finetune_arms(
            _arms(arms),
            how,
            out,
            execution=execution,
            on_step=lambda what, done, total: bar(done, total),
            on_progress=on_progress,
        )
    if as_json:
        write_json({**found, "table": table(found)})
        return
    _show(stdout_console(), table(found))
    for about in found["tasks"].values():
        for test in about["comparison"]["conditions"][0]["comparisons"]:
            say(test["sentence"])
        for test in about["gold_logprob"]["comparisons"]:
            say(gold_sentence(test))


def _arms(texts: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, sources = text.partition("=")
        if not (name and equals and sources):
            raise RecipeError(f"{text}: expected ARM=CHECKPOINT,CHECKPOINT,...")
        if name in found:
            raise RecipeError(f"arm {name!r} is named twice")
        found[name] = [one for source in sources.split(",") for one in _seeds(source.strip())]
    return found


def _seeds(source: str) -> list[str]:
    """A checkpoint; or those in a folder such as `RUN/models/trunk/xpert` of a comparison."""
    folder = Path(source)
    if (folder / "config.json").exists() or not folder.is_dir():
        return [source]
    seeds = [str(one.parent) for one in folder.glob("seed-*/config.json")]
    if not seeds:
        raise RecipeError(f"{source}: neither a checkpoint nor a folder of seed-* checkpoints")
    return sorted(seeds, key=lambda seed: (len(seed), seed))


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = ("arm", "score %", "95% interval", "sd of\nseeds", "log p of gold", "group")
    for task in dict.fromkeys(row["task"] for row in rows):
        shown = [
            (
                row["arm"],
                points(row["score"]),
                "[{}, {}]".format(*map(points, row["interval"])),
                points(row["score_sd"]),
                _gold(row),
                row["group"],
            )
            for row in rows
            if row["task"] == task
        ]
        print_wide(console, task, columns, shown)


def _gold(row: dict[str, Any]) -> str:
    if row["gold_logprob"] is None:
        return ""
    return f"{row['gold_logprob']:.2f} +- {row['gold_logprob_sd']:.2f}"
