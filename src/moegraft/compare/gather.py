"""From arguments to results: evaluate what is a model, read what is results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from moegraft.compare.evaluate import evaluate_models
from moegraft.compare.imports import Argument, merge, read_results
from moegraft.compare.recipe import EvaluationRecipe
from moegraft.compare.results import Results
from moegraft.errors import EvalDataError, RecipeError, ResultsError
from moegraft.evals.command import is_command, load_command
from moegraft.evals.condition import split_name
from moegraft.evals.execution import Execution
from moegraft.evals.run import Progress


def gather(
    arguments: Sequence[Argument],
    recipe: EvaluationRecipe,
    *,
    out: Path | None,
    execution: Execution | None = None,
    metric: str | None = None,
    rename: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Results] | None:
    """Results of every argument, in their order.

    Args:
        arguments: of `compare` or `gate`.
        recipe: how models are evaluated; its `models` are filled in.
        out: run directory of what is evaluated; needed where there is something to evaluate.
        execution: where and how models are evaluated.
        metric: which metric to take from results that have several.
        rename: new names for conditions of results.
        on_progress: called after every item.
        on_note: called with sentences that a user should read.

    Returns:
        None while other shards still evaluate.

    Raises:
        MoegraftError: something cannot be evaluated or read.
    """
    models = {one.name: one.source for one in arguments if one.is_model}
    asked = [one.name for one in arguments if one.is_model]
    if len(models) < len(asked):
        twice = next(name for name in asked if asked.count(name) > 1)
        raise ResultsError(f"two models are called {twice!r}; write NAME=MODEL to change one")
    evaluated: dict[str, Results] = {}
    if models:
        if out is None:
            raise RecipeError(f"{asked[0]} has to be evaluated: name a run directory with --out")
        whole = replace(recipe, models=models)
        if not evaluate_models(whole, out, execution, on_progress=on_progress, on_note=on_note):
            return None
        evaluated = {one.model: one for one in read_results(Argument(str(out)))}
    found: list[Results] = []
    for one in arguments:
        if one.is_model:
            found.append(evaluated[one.name])
        else:
            found += read_results(one, metric=metric, rename=rename)
    labels = {one.label for one in arguments if one.label and not one.is_model}
    named = {label: merge([one for one in found if one.model == label])[0] for label in labels}
    return list({id(r): r for r in (named.get(one.model, one) for one in found)}.values())


def result_name(condition: str) -> str:
    """What results call a condition: a YAML file's task, or a command file's stem.

    Raises:
        EvalDataError: the file names no task.
    """
    if is_command(condition):
        return Path(condition).stem
    head, prompting = split_name(condition)
    if not head.endswith((".yaml", ".yml")):
        return condition
    try:
        task = yaml.safe_load(Path(head).read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise EvalDataError(
            f"{head}: neither a task (`task:`) nor a command (`command:`)"
        ) from None
    return str(task) if prompting is None else f"{task}/{prompting}"


def num_items(condition: str, execution: Execution | None = None) -> int:
    """How many items a condition has; tasks need the extra `eval` and their data.

    Raises:
        EvalDataError: no such task, or no data.
    """
    if is_command(condition):
        return load_command(condition).num_total
    from moegraft.evals.harness import count_items

    how = execution or Execution()
    return count_items(condition, data_dir=how.data_dir, include=how.include)
