"""What `compare` and `gate` share: options, evaluation with progress, JSON on stdout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.options import command_line, parse_bytes, parse_shard, show_progress
from moegraft.cli.terminal import stderr_console
from moegraft.errors import RecipeError

DataOption = Annotated[Path | None, typer.Option(help="Folder with local JSON lines.")]
IncludeOption = Annotated[
    list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
ShardOption = Annotated[str, typer.Option(help="i/n: this is the i-th of n processes.")]
MemoryOption = Annotated[str | None, typer.Option(help="Memory for one model, e.g. 16GB.")]
TokensOption = Annotated[int | None, typer.Option(help="Tokens of one forward pass.")]
RowsOption = Annotated[int | None, typer.Option(help="Generations in flight.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Run directory of what is evaluated; the same command resumes.")
]
RenameOption = Annotated[
    list[str] | None, typer.Option(metavar="OLD=NEW", help="Rename a condition of results.")
]
PromptsOption = Annotated[
    bool, typer.Option("--different-prompts", help="Compare although prompts of items differ.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")]


def execution_of(
    *,
    data: Path | None,
    include: Sequence[Path] | None,
    shard: str,
    device: str,
    memory_budget: str | None,
    batch_tokens: int | None,
    batch_rows: int | None,
) -> Any:
    """Where and how to evaluate, from the options."""
    from moegraft.evals.execution import Execution

    return Execution(
        device=device,
        data_dir=data,
        include=tuple(include or ()),
        shard=parse_shard(shard),
        memory_budget_bytes=None if memory_budget is None else parse_bytes(memory_budget),
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
        command=command_line(),
    )


def gather_results(
    asked: Sequence[Any],
    recipe: Any,
    *,
    out: Path | None,
    how: Any,
    metric: str | None,
    rename: Mapping[str, str],
) -> Any:
    """Results of every argument; None, and a sentence, while other shards still evaluate."""
    from moegraft.compare.gather import gather

    notes = stderr_console()
    try:
        with show_progress("evaluation") as on_progress:
            results = gather(
                asked,
                recipe,
                out=out,
                execution=how,
                metric=metric,
                rename=rename,
                on_progress=on_progress,
                on_note=lambda note: notes.print(note, style="dim", markup=False),
            )
    except KeyboardInterrupt:
        notes.print(
            f"interrupted; finished items are kept. Resume with: {command_line()}", markup=False
        )
        raise typer.Exit(130) from None
    if results is None:
        notes.print("no items left for this shard; the others are not finished", markup=False)
    return results


def renames(pairs: Sequence[str] | None) -> dict[str, str]:
    """`--rename OLD=NEW` as a mapping."""
    found = {}
    for text in pairs or ():
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise RecipeError(f"--rename {text}: expected OLD=NEW")
        found[old] = new
    return found
