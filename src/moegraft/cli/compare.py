"""`moegraft compare`: which model is better, and what the items can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moegraft.cli.evaluation import (
    DataOption,
    DeviceOption,
    IncludeOption,
    JsonOption,
    MemoryOption,
    OutOption,
    PromptsOption,
    RenameOption,
    RowsOption,
    ShardOption,
    TokensOption,
    execution_of,
    gather_results,
    renames,
)
from moegraft.cli.options import command_line, parse_limit, parse_weights, split_list
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import RecipeError, ResultsError


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Checkpoints (folder, org/name[@rev], nano:NAME) or results: a run directory "
            "[:CONFIGURATION], lm-eval samples, CSV or JSON lines, JSON logs of Inspect.",
        ),
    ] = None,
    *,
    as_: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="CONFIGURATION=RESULTS",
            help="Make a run of results: host=A donor=B router+experts=C ...; repeatable.",
        ),
    ] = None,
    out: OutOption = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="For checkpoints: tasks, task files or command files."),
    ] = None,
    limit: Annotated[str, typer.Option(help="Items per condition, or 'all'.")] = "500",
    seed: Annotated[int, typer.Option(help="Orders the items, and seeds the bootstrap.")] = 0,
    reference: Annotated[
        str | None, typer.Option(help="Compare every model with this one only.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=M1,M2,...",
            help="These models are training seeds of one recipe: compare recipes; repeatable.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="A=2,B=1", help="Weights of conditions in the overall score."),
    ] = None,
    test_overall: Annotated[
        bool,
        typer.Option("--test-overall", help="Count the overall score among the adjusted tests."),
    ] = False,
    margin: Annotated[
        float | None, typer.Option(help="Points within which models count as equal (TOST).")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="METRIC[,FILTER]", help="Which metric of results to take.")
    ] = None,
    rename: RenameOption = None,
    different_prompts: PromptsOption = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    chat_template: Annotated[bool, typer.Option("--chat-template/--no-chat-template")] = True,
    data: DataOption = None,
    include: IncludeOption = None,
    shard: ShardOption = "1/1",
    device: DeviceOption = "auto",
    memory_budget: MemoryOption = None,
    batch_tokens: TokensOption = None,
    batch_rows: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Rank models on the same items, and say what the items can and cannot tell apart."""
    from moegraft.cli.compare_tables import show_comparison
    from moegraft.compare.imports import parse_argument
    from moegraft.compare.recipe import EvaluationRecipe
    from moegraft.compare.results import pair
    from moegraft.compare.table import compare as compare_models
    from moegraft.config import parse_recipe

    names = renames(rename)
    if as_:
        if models or not out:
            raise RecipeError("--as takes the place of models and needs --out for the run it makes")
        if arm or weights or test_overall:
            raise RecipeError("--arm, --weights and --test-overall have no effect with --as")
        _factorial(as_, out, metric, names, different_prompts)
        return
    asked = [parse_argument(text) for text in models or ()]
    if not asked:
        raise RecipeError("name two or more models or results, or map results with --as")
    if margin is not None and not 0 < margin <= 100:
        raise RecipeError(f"--margin: expected more than 0 and at most 100 points, got {margin:g}")
    recipe = parse_recipe(
        {
            "models": {},
            "conditions": split_list(conditions) or _default_conditions(asked),
            "limit": parse_limit(limit),
            "seed": seed,
            "dtype": dtype,
            "chat_template": chat_template,
        },
        EvaluationRecipe,
        where="compare",
    )
    how = execution_of(
        data=data,
        include=include,
        shard=shard,
        device=device,
        memory_budget=memory_budget,
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
    )
    results = gather_results(asked, recipe, out=out, how=how, metric=metric, rename=names)
    if results is None:
        return
    found = compare_models(
        pair(results, different_prompts=different_prompts),
        reference=reference,
        margin=None if margin is None else margin / 100,
        arms=_arms(arm),
        weights=parse_weights(weights),
        test_overall=test_overall,
        seed=seed,
    )
    if json:
        write_json(found)
    else:
        show_comparison(found, stdout_console())


def _arms(texts: Sequence[str] | None) -> dict[str, list[str]] | None:
    """`--arm NAME=M1,M2`."""
    if not texts:
        return None
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, seeds = text.partition("=")
        if not (name and equals):
            raise RecipeError(f"--arm {text}: expected NAME=MODEL,MODEL,...")
        if name in found:
            raise RecipeError(f"--arm: {name} is named twice")
        found[name] = [seed.strip() for seed in seeds.split(",") if seed.strip()]
    return found


def _factorial(
    mapped: Sequence[str],
    out: Path,
    metric: str | None,
    rename: Mapping[str, str],
    different_prompts: bool,
) -> None:
    from moegraft.cli.sweep import print_report
    from moegraft.compare.factorial import configuration_name, write_factorial
    from moegraft.compare.imports import parse_argument, read_results

    results = {}
    for text in mapped:
        name, equals, source = text.partition("=")
        if not equals:
            raise RecipeError(f"--as {text}: expected CONFIGURATION=RESULTS")
        configuration = configuration_name(name)
        found = read_results(parse_argument(source), metric=metric, rename=rename)
        if len(found) > 1:
            names = ", ".join(one.model for one in found)
            raise ResultsError(f"--as {text}: several models ({names}); pick one: {source}:MODEL")
        if configuration in results:
            raise RecipeError(f"--as: {configuration} is named twice")
        results[configuration] = found[0]
    write_factorial(results, out, different_prompts=different_prompts, command=command_line())
    print_report(out, "default")


def _default_conditions(asked: Sequence[Any]) -> tuple[str, ...]:
    from moegraft.sweep.design import NANO_CONDITIONS, PAPER_CONDITIONS

    models = [one.source for one in asked if one.is_model]
    nano = bool(models) and all(source.startswith("nano:") for source in models)
    return NANO_CONDITIONS if nano else PAPER_CONDITIONS
