import json

import pytest

from moegraft.compare import pair, read_results
from moegraft.errors import ResultsError


def write_task(folder, values, *, task="arc_challenge", task_hash="f00d", primary="acc_raw"):
    """One task as OLMES writes it: predictions, and metrics with the task's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "doc_id": place,
            "native_id": f"Mercury_{place}",
            "metrics": {"acc_raw": value, "acc_per_char": 1 - value, "correct_choice": 2},
            "model_output": [{"sum_logits": -3.5, "num_tokens": 1}],
            "label": 2,
        }
        for place, value in enumerate(values)
    ]
    stem = folder / f"task-000-{task}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    stem.with_name(f"{stem.name}-predictions.jsonl").write_text(lines)
    about = {
        "task_name": task,
        "task_hash": task_hash,
        "model_config": {"model": folder.name},
        "task_config": {"primary_metric": primary, "metadata": {"alias": f"{task}:mc::olmes"}},
    }
    stem.with_name(f"{stem.name}-metrics.json").write_text(json.dumps(about))
    return folder


def test_two_models_pair_by_the_data_sets_own_ids_on_the_primary_metric(tmp_path):
    write_task(tmp_path / "a", [1, 0, 1])
    write_task(tmp_path / "b", [0, 0, 1, 1])
    paired = pair(read_results(str(tmp_path)))
    (one,) = paired.conditions
    assert paired.models == ("a", "b")
    assert (one.condition, one.metric) == ("arc_challenge:mc::olmes", "acc_raw")
    assert one.items == ("Mercury_0", "Mercury_1", "Mercury_2")
    assert one.scores.T.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert (one.prompts, one.left_out) == ("equal", {"b": 1})


def test_another_metric_and_a_single_file_are_taken_on_demand(tmp_path):
    folder = write_task(tmp_path / "a", [1, 0])
    file = folder / "task-000-arc_challenge-predictions.jsonl"
    (found,) = read_results(f"mine={file}", metric="acc_per_char")
    assert found.model == "mine"
    assert [row["score"] for row in found.cells["arc_challenge:mc::olmes"].values()] == [0, 1]


def test_another_configuration_of_a_task_is_refused(tmp_path):
    write_task(tmp_path / "a", [1, 0])
    write_task(tmp_path / "b", [1, 0], task_hash="beef")
    with pytest.raises(ResultsError, match="asked under different prompts"):
        pair(read_results(str(tmp_path)))


def test_what_is_missing_is_one_line(tmp_path):
    folder = write_task(tmp_path / "a", [1, 0], primary="macro")
    with pytest.raises(ResultsError, match="no metric 'macro'; it has acc_raw, acc_per_char"):
        read_results(str(folder))
    (folder / "task-000-arc_challenge-metrics.json").unlink()
    with pytest.raises(ResultsError, match="names the primary metric; pass --metric, one of acc_"):
        read_results(str(folder))
    (found,) = read_results(str(folder), metric="acc_raw")
    assert list(found.cells) == ["arc_challenge"]
    file = folder / "task-000-arc_challenge-predictions.jsonl"
    text = file.read_text()
    file.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(ResultsError, match="line 3: native_id Mercury_0 stands twice"):
        read_results(str(folder), metric="acc_raw")
    file.write_text("")
    with pytest.raises(ResultsError, match="no predictions in it"):
        read_results(str(folder), metric="acc_raw")
    file.write_text(text.replace('"acc_raw": 1', '"acc_raw": null'))
    with pytest.raises(ResultsError, match="line 1: acc_raw is None, expected a number"):
        read_results(str(folder), metric="acc_raw")
