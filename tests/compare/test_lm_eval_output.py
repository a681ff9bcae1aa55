"""Real output of lm-eval on the packaged checkpoints pairs with itself and with our runs."""

from itertools import islice
from pathlib import Path

import pytest
import yaml

import moegraft
from moegraft.compare.evaluate import evaluate_models
from moegraft.compare.imports import read_results
from moegraft.compare.recipe import EvaluationRecipe
from moegraft.compare.results import pair
from moegraft.compare.table import compare
from moegraft.errors import ResultsError
from moegraft.evals.execution import Execution
from moegraft.evals.harness import TASKS

MODELS = ("base", "sft-dpo", "rlvr")
NUM_ITEMS = 5


def copy_task(name: str, folder: Path) -> Path:
    """A packaged task on its first items, as a file that lm-eval itself can read."""
    config = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
    files = config["dataset_kwargs"]["data_files"]
    source = Path(moegraft.__file__).parent / files["test"].removeprefix("package:")
    data = folder / f"{name}.jsonl"
    with source.open() as lines:
        data.write_text("".join(islice(lines, NUM_ITEMS)))
    config["dataset_kwargs"] = {"data_files": {"test": str(data)}}
    config["num_fewshot"] = 0
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return [copy_task(name, folder) for name in ("nano_math", "nano_reading")]


@pytest.fixture(scope="module")
def samples(tmp_path_factory, tasks) -> Path:
    """What `lm_eval --log_samples --output_path` leaves, a folder per model."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from moegraft.evals.scorer import Scorer
    from moegraft.runtime import Host

    root = tmp_path_factory.mktemp("lm-eval")
    manager = TaskManager(include_path=str(tasks[0].parent), include_defaults=False)
    for name in MODELS:
        host = Host.load(f"nano:{name}", {}, device="cpu", dtype="float32")
        found = simple_evaluate(
            model=Scorer(host),
            tasks=[path.stem for path in tasks],
            task_manager=manager,
            apply_chat_template=True,
            bootstrap_iters=0,
            log_samples=True,
        )
        tracker = EvaluationTracker(output_path=str(root))
        tracker.general_config_tracker.model_name_sanitized = f"nano__{name}"
        every = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=every)
        for task, rows in every.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    return root


def test_samples_of_three_models_pair_item_by_item(samples, tasks):
    assert len(list(samples.rglob("samples_*.jsonl"))) == 6
    results = read_results(str(samples), metric=None)
    paired = pair(results)
    assert sorted(paired.models) == sorted(f"nano__{name}" for name in MODELS)
    assert sorted(one.condition for one in paired.conditions) == ["nano_math", "nano_reading"]
    assert {one.scores.shape for one in paired.conditions} == {(NUM_ITEMS, 3)}
    assert {one.prompts for one in paired.conditions} == {"equal"}
    found = compare(paired)
    assert found["settings"]["num_tests"] == 6
    assert {len(about["ranking"]) for about in found["conditions"]} == {3}


def test_their_scores_equal_those_of_our_own_run(samples, tasks, tmp_path):
    recipe = EvaluationRecipe({"ours": "nano:rlvr"}, (str(tasks[0]),))
    evaluate_models(recipe, tmp_path / "run", Execution(device="cpu"))
    ours, theirs = str(tmp_path / "run"), f"theirs={samples / 'nano__rlvr'}"
    with pytest.raises(ResultsError, match=r"different metrics .*pass --metric"):
        pair([*read_results(ours), *read_results(theirs)])
    for metric in ("exact_match,strict-match", "exact_match,flexible-extract"):
        (math,) = (samples / "nano__rlvr").glob("samples_nano_math_*.jsonl")
        both = [*read_results(ours, metric=metric), *read_results(f"t={math}", metric=metric)]
        (found,) = pair(both).conditions
        assert (found.condition, found.prompts, found.metric) == ("nano_math", "equal", metric)
        assert len(found.items) == NUM_ITEMS
        assert (found.scores[:, 0] == found.scores[:, 1]).all()


def test_another_filter_changes_the_score_and_says_so(samples):
    (math,) = (samples / "nano__base").glob("samples_nano_math_*.jsonl")
    strict = read_results(str(math))
    flexible = read_results(str(math), metric="exact_match,flexible-extract")
    assert strict[0].metrics["nano_math"] == "exact_match,strict-match"
    assert flexible[0].metrics["nano_math"] == "exact_match,flexible-extract"
