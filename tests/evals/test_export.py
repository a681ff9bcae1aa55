"""The export to lm-eval's sample files."""

import json

import pytest

from moegraft.errors import RunError
from moegraft.evals import store
from moegraft.evals.export import export_samples

PROMPT = {"item": "i1", "doc": {"q": "How much?"}, "prompt": "Q: How much?", "gold": "4"}
ROW = {
    "item": "i1",
    "score": 1.0,
    "scores": {"exact_match": 1.0, "exact_match,strict-match": 0.0, "f1,strict-match": 0.5},
    "output": "It is 4",
    "extracted": "4",
    "gold": "4",
}


def run_of(tmp_path, row=ROW):
    store.write_rows(store.cell_path(tmp_path, "router", "t/5-shot"), [row])
    store.write_rows(tmp_path / "prompts" / "t" / "5-shot.jsonl", [PROMPT])
    return tmp_path


def samples(run):
    (path,) = export_samples(run)
    assert path.parent == run / "lm-eval" / "router"
    assert path.name.startswith("samples_t_5-shot_20")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_is_one_sample_per_filter_with_its_metrics(tmp_path):
    ours, strict = samples(run_of(tmp_path))
    assert (ours["filter"], ours["metrics"], ours["exact_match"]) == ("none", ["exact_match"], 1.0)
    assert (strict["filter"], strict["metrics"]) == ("strict-match", ["exact_match", "f1"])
    assert (strict["exact_match"], strict["f1"]) == (0.0, 0.5)
    for sample in (ours, strict):
        assert sample["resps"] == [["It is 4"]]
        assert sample["arguments"]["gen_args_0"]["arg_0"] == PROMPT["prompt"]
        assert sample["target"] == "4"


def test_the_document_hash_is_lm_evals(tmp_path):
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(PROMPT["doc"], indent=2, default=handle_non_serializable, ensure_ascii=False)
    assert samples(run_of(tmp_path))[0]["doc_hash"] == hash_string(text)


def test_a_comparison_of_choices_has_no_response(tmp_path):
    (sample,) = samples(run_of(tmp_path, ROW | {"output": None, "scores": {"acc": 1.0}}))
    assert sample["resps"] == []
    assert sample["acc"] == 1.0


def test_no_run_and_no_prompts_are_errors(tmp_path):
    with pytest.raises(RunError, match="no item results found"):
        export_samples(tmp_path)
    (run_of(tmp_path) / "prompts" / "t" / "5-shot.jsonl").unlink()
    with pytest.raises(RunError, match=r"5-shot\.jsonl is missing or damaged"):
        export_samples(tmp_path)
