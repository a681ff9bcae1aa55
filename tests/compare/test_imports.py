"""Results of other programs are read into rows that pair, or refused in one line."""

import csv
import json

import pytest

from moegraft.compare.imports import parse_argument, read_results
from moegraft.compare.results import pair
from moegraft.errors import ResultsError


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(place, score, *, doc=None, prompt=None, tag="none", **other):
    """A line of lm-eval's samples."""
    return {
        "doc_id": place,
        "doc": doc or {"question": f"q{place}", "answer": place},
        "target": str(place),
        "arguments": {"gen_args_0": {"arg_0": "..."}},
        "resps": [[f"I say {place}"]],
        "filtered_resps": [str(place)],
        "filter": tag,
        "metrics": ["exact_match"],
        "doc_hash": f"d{place}",
        "prompt_hash": prompt or f"p{place}",
        "target_hash": f"t{place}",
        "exact_match": score,
    } | other


def lm_eval_folder(root, model, scores, task="gsm8k", **options):
    path = root / model / f"samples_{task}_2026-11-02T10-11-12.123456.jsonl"
    write_lines(path, [sample(place, s, **options) for place, s in enumerate(scores)])
    return path.parent


def test_lm_eval_samples_pair_by_the_content_of_the_document(tmp_path):
    first = lm_eval_folder(tmp_path, "org__a", [1.0, 0.0, 1.0])
    second = tmp_path / "org__b" / "samples_gsm8k_2026-11-03T10-11-12.1.jsonl"
    rows = [sample(place, s) for place, s in enumerate([0.0, 1.0, 1.0])]
    renumbered = [row | {"doc_id": place} for place, row in enumerate(reversed(rows))]
    write_lines(second, renumbered)  # `samples=` of lm-eval renumbers
    paired = pair([*read_results(str(first)), *read_results(str(second))])
    (condition,) = paired.conditions
    assert paired.models == ("org__a", "org__b")
    assert (condition.condition, condition.prompts) == ("gsm8k", "equal")
    assert condition.scores.sum(axis=0).tolist() == [2.0, 2.0]
    assert sorted(map(tuple, condition.scores.tolist())) == [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert condition.metric == "exact_match"


def test_the_first_filter_is_taken_and_another_one_on_demand(tmp_path):
    rows = [sample(0, 0.0, tag="strict"), sample(0, 1.0, tag="flexible")]
    path = write_lines(tmp_path / "m" / "samples_gsm8k.jsonl", rows)
    (strict,) = read_results(str(path))
    (flexible,) = read_results(str(path), metric="exact_match,flexible")
    assert strict.metrics == {"gsm8k": "exact_match,strict"}
    assert [row["score"] for row in strict.cells["gsm8k"].values()] == [0.0]
    assert [row["score"] for row in flexible.cells["gsm8k"].values()] == [1.0]
    with pytest.raises(ResultsError, match="no filter 'loose'; it has strict, flexible"):
        read_results(str(path), metric="exact_match,loose")
    with pytest.raises(ResultsError, match="no metric 'acc'; it has exact_match"):
        read_results(str(path), metric="acc")


def test_copies_of_one_document_stay_apart_and_a_doc_id_twice_is_refused(tmp_path):
    doc = {"question": "again"}
    path = tmp_path / "m" / "samples_t.jsonl"
    write_lines(path, [sample(0, 1.0, doc=doc), sample(1, 0.0, doc=doc)])
    (found,) = read_results(str(path))
    assert len(found.cells["t"]) == 2
    write_lines(path, [sample(0, 1.0), sample(0, 0.0)])
    with pytest.raises(ResultsError, match="doc_id 0 stands twice"):
        read_results(str(path))


def test_different_prompts_are_refused_unless_asked_for(tmp_path):
    a = lm_eval_folder(tmp_path, "a", [1.0, 0.0])
    b = lm_eval_folder(tmp_path, "b", [1.0, 0.0], prompt="another")
    both = [*read_results(str(a)), *read_results(str(b))]
    with pytest.raises(ResultsError, match=r"different prompts \(2 of 2 items\).*--different"):
        pair(both)
    assert pair(both, different_prompts=True).conditions[0].prompts == "different"


def test_different_metrics_are_refused(tmp_path):
    a = lm_eval_folder(tmp_path, "a", [1.0], tag="strict")
    b = lm_eval_folder(tmp_path, "b", [1.0], tag="flexible")
    with pytest.raises(ResultsError, match=r"different metrics \(a: exact_match,strict, b: "):
        pair([*read_results(str(a)), *read_results(str(b))])


def test_a_long_csv_holds_several_models_and_conditions(tmp_path):
    path = tmp_path / "scores.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "model", "score", "condition", "cluster", "output"])
        for item in range(3):
            for model in ("x", "y"):
                for condition in ("one", "two"):
                    text = "a line\nand one more, with comma"
                    writer.writerow([item, model, item / 2, condition, f"c{item // 2}", text])
    paired = pair(read_results(str(path)))
    assert paired.models == ("x", "y")
    assert [one.condition for one in paired.conditions] == ["one", "two"]
    assert paired.conditions[0].clusters == ("c0", "c0", "c1")
    assert paired.conditions[0].scores.tolist() == [[0, 0], [0.5, 0.5], [1, 1]]
    assert paired.conditions[0].prompts == "unknown"


def test_a_wide_table_has_a_column_per_model(tmp_path):
    rows = [{"item": i, "small": i % 2, "large": 1} for i in range(4)]
    found = read_results(str(write_lines(tmp_path / "wide.jsonl", rows)))
    assert [(one.model, len(one.cells["scores"])) for one in found] == [("small", 4), ("large", 4)]
    (large,) = read_results(f"best={tmp_path / 'wide.jsonl'}:large")
    assert (large.model, {row["score"] for row in large.cells["scores"].values()}) == ("best", {1})


def test_plain_item_and_score_lines_are_of_the_model_that_the_file_is_called_after(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [{"item": "a", "score": True}])
    assert read_results(str(path))[0].model == "mine"
    assert read_results(f"other={path}")[0].model == "other"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"item": 1, "score": 1}, {"item": "1", "score": 0}], "line 2: item '1' stands twice"),
        ([{"item": 1, "score": float("nan")}], "line 1: score is nan, expected a finite number"),
        ([{"item": 1, "score": "yes"}], "line 1: score is 'yes', expected a number"),
        ([{"item": 1, "score": None}], "line 1: score is None, expected a number"),
        ([{"score": 1}], "no column 'item'; it has score"),
        ([{"item": 1, "prompt": "p"}], "neither a column 'score' nor a column per model"),
        ([{"item": 1, "score": 1}, {"score": 1}], "line 2: no item"),
        ([], "no rows in it"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, rows, message):
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(ResultsError, match=message) as caught:
        read_results(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_disjoint_items_and_conditions_are_refused(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", [{"item": 1, "score": 1}])
    b = write_lines(tmp_path / "b.jsonl", [{"item": 2, "score": 1}])
    with pytest.raises(ResultsError, match=r"scores: the models share no item .*a: 1, b: 2"):
        pair([*read_results(str(a)), *read_results(str(b))])
    c = read_results(str(b), rename={"scores": "mmlu"})
    with pytest.raises(ResultsError, match=r"no condition in common \(a: scores; b: mmlu\)"):
        pair([*read_results(str(a)), *c])
    with pytest.raises(ResultsError, match="two models are called 'a'"):
        pair(read_results(str(a)) * 2)
    with pytest.raises(ResultsError, match=r"only one model \(a\)"):
        pair(read_results(str(a)))


def test_items_that_one_model_lacks_are_left_out_and_counted(tmp_path):
    rows = [{"item": i, "model": m, "score": 1} for i in range(5) for m in "ab"]
    rows = [row for row in rows if (row["item"], row["model"]) != (3, "b")]
    found = read_results(str(write_lines(tmp_path / "t.jsonl", rows)))
    assert pair(found).conditions[0].left_out == {"a": 1}
    with pytest.raises(ResultsError, match="1 of 5 items of a are missing elsewhere"):
        pair(found, same_items=True)


def inspect_log(values, *, model="openai/x", epochs=1, status="success"):
    samples = [
        {
            "id": place,
            "epoch": epoch + 1,
            "input": [{"id": f"{model}{place}", "role": "user", "content": f"q{place}"}],
            "target": "t",
            "output": {"completion": "..."},
            "scores": {"match": {"value": value}},
        }
        for place, value in enumerate(values)
        for epoch in range(epochs)
    ]
    about = {"task": "arc", "model": model}
    return {"version": 2, "status": status, "eval": about, "samples": samples}


def test_logs_of_inspect_count_correct_partial_and_incorrect(tmp_path):
    for name, values in (("a", ["C", "I", "P"]), ("b", [True, 0.25, "N"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(inspect_log(values, model=name)))
    paired = pair(read_results(str(tmp_path)))
    assert paired.models == ("a", "b")
    assert paired.conditions[0].condition == "arc"
    assert paired.conditions[0].scores.sum(axis=0).tolist() == [1.5, 1.25]


def test_epochs_are_averaged_and_failed_logs_refused(tmp_path):
    log = inspect_log(["C"], epochs=2)
    log["samples"][1]["scores"]["match"]["value"] = "I"
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    (found,) = read_results(str(path))
    assert [row["score"] for row in found.cells["arc"].values()] == [0.5]
    path.write_text(json.dumps(inspect_log(["C"], status="error")))
    with pytest.raises(ResultsError, match="ended with status 'error'"):
        read_results(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", {"results": {}}, "no scores of items; run lm-eval with --log_samples"),
        ("log.eval", {}, "inspect log convert --to json"),
        ("thing.parquet", {}, r"not a format that is read \(.csv, .tsv, .jsonl"),
    ],
)
def test_what_cannot_be_read_says_the_way_out(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=message):
        read_results(str(path))
    with pytest.raises(ResultsError, match="neither results nor a checkpoint"):
        read_results(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="no results in it; expected items/ of a run"):
        read_results(str(tmp_path / "empty"))


def test_arguments_name_checkpoints_servers_or_results(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert parse_argument(str(tmp_path / "model")).is_model
    assert parse_argument(f"mine={tmp_path / 'model'}").name == "mine"
    assert parse_argument(str(tmp_path / "model")).name == "model"
    assert parse_argument("nano:base").is_model
    assert parse_argument("nano:base").name == "nano:base"
    assert parse_argument("org/name@main").is_model
    server = parse_argument("new=http://localhost:8000/v1")
    assert (server.label, server.is_server, server.is_model) == ("new", True, True)
    assert not parse_argument(str(tmp_path)).is_model
    chosen = parse_argument(f"{tmp_path}:router+experts")
    assert (chosen.source, chosen.chosen) == (str(tmp_path), "router+experts")
    nano = parse_argument(f"old={tmp_path}:nano:base")
    assert (nano.label, nano.source, nano.chosen) == ("old", str(tmp_path), "nano:base")


def test_results_of_one_model_in_two_files_are_joined_but_not_twice(tmp_path):
    folder = lm_eval_folder(tmp_path, "m", [1.0], task="one")
    lm_eval_folder(tmp_path, "m", [0.0], task="two")
    (found,) = read_results(str(folder))
    assert sorted(found.cells) == ["one", "two"]
    other = folder / "samples_one_2026-12-02T10-11-12.123456.jsonl"
    write_lines(other, [sample(0, 1.0)])
    with pytest.raises(ResultsError, match="a second file of one for m"):
        read_results(str(folder))


def test_a_column_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("item,a,b, a\n1,1,0,1\n")
    with pytest.raises(ResultsError, match=r"scores\.csv: column 'a' stands twice; rename one"):
        read_results(str(path))


def test_a_table_may_hold_long_outputs(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(f"item,model,score,output\n1,a,1,{'x' * 200_000}\n1,b,0,y\n")
    assert [one.model for one in read_results(str(path))] == ["a", "b"]
