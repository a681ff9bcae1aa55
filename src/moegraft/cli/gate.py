"""`moegraft gate`: whether a release lost something, for people and for CI systems."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from moegraft.cli.terminal import stderr_console, stdout_console, write_json
from moegraft.errors import MoegraftError, RecipeError, ResultsError

EXIT_CODES = {"pass": 0, "regressed": 1, "inconclusive": 2}
ERROR = 3
"""Exit code of `gate` on wrong input, because 2 says that the items do not suffice."""


def gate(
    old: Annotated[
        str | None, typer.Argument(metavar="[NAME=]OLD", help="The deployed model, or its results.")
    ] = None,
    new: Annotated[
        str | None, typer.Argument(metavar="[NAME=]NEW", help="The candidate, or its results.")
    ] = None,
    *,
    suite: Annotated[Path, typer.Option(help="YAML: conditions with their margins.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say which margins the items can carry.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the result as JUnit XML.")] = None,
    out: OutOption = None,
    rename: RenameOption = None,
    different_prompts: PromptsOption = False,
    data: DataOption = None,
    include: IncludeOption = None,
    shard: ShardOption = "1/1",
    device: DeviceOption = "auto",
    memory_budget: MemoryOption = None,
    batch_tokens: TokensOption = None,
    batch_rows: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Block a release that lost something: 0 pass, 1 regressed, 2 too few items, 3 wrong input."""
    try:
        how = execution_of(
            data=data,
            include=include,
            shard=shard,
            device=device,
            memory_budget=memory_budget,
            batch_tokens=batch_tokens,
            batch_rows=batch_rows,
        )
        names = renames(rename)
        if plan:
            code = _plan([one for one in (old, new) if one], suite, how, names, json)
        else:
            found = test_models(
                [one for one in (old, new) if one],
                suite,
                how,
                names,
                out=out,
                different_prompts=different_prompts,
            )
            code = report_gate(found, junit, json)
    except MoegraftError as error:
        stderr_console().print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(ERROR) from None
    raise typer.Exit(code)


def test_models(
    models: Sequence[str],
    path: Path,
    how: Any,
    rename: Mapping[str, str],
    *,
    out: Path | None,
    different_prompts: bool,
) -> Any:
    """What `compare.gate` says; None while other shards still evaluate."""
    from moegraft.compare.gate import gate as test_release
    from moegraft.compare.imports import parse_argument
    from moegraft.compare.recipe import EvaluationRecipe
    from moegraft.compare.results import pair

    asked = [parse_argument(text) for text in models]
    if len(asked) < 2:
        raise RecipeError("name the deployed model and the candidate: gate OLD NEW --suite FILE")
    suite, conditions = read_suite(path)
    recipe = EvaluationRecipe(
        {}, conditions, suite.limit, suite.seed, suite.dtype, suite.chat_template
    )
    results = gather_results(asked, recipe, out=out, how=how, metric=suite.metric, rename=rename)
    if results is None:
        return None
    if len(results) > 2:
        raise ResultsError(
            f"{len(results)} models in the results; pick one each, as RESULTS:MODEL "
            f"(there are {', '.join(one.model for one in results)})"
        )
    pairing = pair(results, different_prompts=different_prompts, same_items=True)
    return test_release(suite, pairing)


def report_gate(found: Mapping[str, Any] | None, path: Path | None, json: bool) -> int:
    """Print and write the result; the exit code."""
    from moegraft.cli.compare_tables import show_gate
    from moegraft.compare.gate import junit
    from moegraft.evals.store import write_atomically

    if found is None:
        return EXIT_CODES["inconclusive"]
    if path is not None:
        write_atomically(path, junit(found).encode())
    if json:
        write_json(found)
    else:
        show_gate(found, stdout_console())
    return EXIT_CODES[found["verdict"]]


def _plan(
    models: Sequence[str], path: Path, how: Any, rename: Mapping[str, str], json: bool
) -> int:
    """Print what the items can carry; 2 where they cannot carry a margin."""
    from moegraft.cli.compare_tables import show_plan
    from moegraft.compare.clusters import design_effect, largest_design_effect
    from moegraft.compare.gate import observed_discordance, plan
    from moegraft.compare.gather import num_items
    from moegraft.compare.imports import parse_argument, read_results
    from moegraft.compare.results import pair

    suite, conditions = read_suite(path)
    asked = [one for one in map(parse_argument, models) if not one.is_model]
    results = [
        one for arg in asked for one in read_results(arg, metric=suite.metric, rename=rename)
    ]
    sizes, discordances, effects = {}, {}, {}
    for check, condition in zip(suite.conditions, conditions, strict=True):
        cells = [r.cells[check.condition] for r in results if check.condition in r.cells]
        known = [len(rows) for rows in cells]
        for rows in cells:
            clusters = [row.get("cluster") for row in rows.values()]
            effects[check.condition] = largest_design_effect(clusters)
        if check.num_items or known:
            sizes[check.condition] = check.num_items or min(known)
        else:
            total = num_items(condition, how)
            limited = isinstance(suite.limit, int)
            sizes[check.condition] = min(total, suite.limit) if limited else total
    if len(results) == 2:
        for one in pair(results).conditions:
            discordances[one.condition] = observed_discordance(one)
            difference = one.scores[:, 1] - one.scores[:, 0]
            effects[one.condition] = design_effect(difference, one.clusters)
    planned = plan(suite, sizes, discordances, effects)
    if json:
        write_json(planned)
    else:
        show_plan(planned, suite, stdout_console())
    return 0 if all(entry["carried"] for entry in planned) else EXIT_CODES["inconclusive"]


def read_suite(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The suite with its conditions called as results call them, and what to evaluate for each.

    Files are looked for beside the suite first.
    """
    from moegraft.compare.gate import Suite
    from moegraft.compare.gather import result_name
    from moegraft.config import load_recipe

    suite = load_recipe(path, Suite)
    found = []
    for check in suite.conditions:
        beside = path.parent / check.condition
        found.append(str(beside) if beside.is_file() else check.condition)
    checks = tuple(
        replace(check, condition=result_name(condition))
        for check, condition in zip(suite.conditions, found, strict=True)
    )
    return replace(suite, conditions=checks), tuple(found)
