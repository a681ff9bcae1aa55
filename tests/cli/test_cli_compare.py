import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import yaml

BOTH = [1] * 60 + [0] * 40
BETTER = [1] * 85 + [0] * 15


@pytest.fixture
def write_scores(tmp_path):
    """Write a table of one model, `write_scores("old", gsm8k=[1, 0, ...])`; returns its path."""

    def write(name, **scores):
        path = tmp_path / f"{name}.jsonl"
        rows = (
            {"item": place, "condition": condition, "score": score}
            for condition, values in scores.items()
            for place, score in enumerate(values)
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def write_suite(tmp_path):
    """Write a suite, `write_suite({"gsm8k": 2.0}, alpha=0.05)`; returns its path."""

    def write(margins, **settings):
        checks = [{"condition": name, "margin_points": m} for name, m in margins.items()]
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"conditions": checks, **settings}))
        return path

    return write


def test_compare_prints_a_ranking_sentences_and_methods(moegraft, write_scores):
    old, new = write_scores("old", gsm8k=BOTH), write_scores("new", gsm8k=BETTER)
    code, out, err = moegraft("compare", old, f"candidate={new}")
    assert (code, err) == (0, "")
    assert "candidate is ahead of old by 25.0 points [" in out
    assert "], adjusted p < .001." in out
    assert out.index("candidate") < out.index("old")
    assert "Methods. We compared 2 models" in out
    found = json.loads(moegraft("compare", old, f"candidate={new}", "--json")[1])
    assert (found["schema"], found["models"]) == (1, ["old", "candidate"])


def test_compare_takes_seeds_of_recipes_and_weights_of_conditions(moegraft, write_scores):
    paths = [
        write_scores(name, math=scores, boolq=scores[5:])
        for name, scores in {"a1": BOTH, "a2": [0, *BOTH[1:]], "b1": BETTER, "b2": BETTER}.items()
    ]
    arms = ("--arm", "a=a1,a2", "--arm", "b=b1, b2")
    code, out, err = moegraft("compare", *paths, *arms, "--weights", "math=3,boolq=1")
    assert (code, err) == (0, "")
    assert "b is ahead of a by 25.5 points [" in out
    assert "60.0 59.0" in out  # what each seed scores
    assert "Overall: weighted mean, 0.75 math and 0.25 boolq, 195 items" in out
    found = json.loads(moegraft("compare", *paths, *arms, "--test-overall", "--json")[1])
    assert found["arms"] == {"a": ["a1", "a2"], "b": ["b1", "b2"]}
    assert (found["settings"]["num_tests"], found["overall"]["confirmatory"]) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name two or more models or results"),
        (("OLD",), "only one model (old); a comparison needs two or more"),
        (("OLD", "OLD"), "two models are called 'old'"),
        (("OLD", "missing"), "missing: neither results nor a checkpoint"),
        (("OLD", "nano:base"), "nano:base has to be evaluated: name a run directory with --out"),
        (("OLD", "NEW", "--margin", "0"), "--margin: expected more than 0"),
        (("OLD", "NEW", "--rename", "x"), "--rename x: expected OLD=NEW"),
        (("OLD", "NEW", "--reference", "older"), "no such model; there are old, new"),
        (("OLD", "NEW", "--shard", "3/2"), "--shard: expected i/n"),
        (("OLD", "NEW", "--arm", "x"), "--arm x: expected NAME=MODEL,MODEL,..."),
        (("OLD", "NEW", "--arm", "x=old", "--arm", "y=new"), "x: an arm needs two or more"),
        (("OLD", "NEW", "--arm", "x=old,new", "--arm", "x=old,new"), "--arm: x is named twice"),
        (("OLD", "NEW", "--weights", "gsm8k"), "--weights gsm8k: expected CONDITION=NUMBER"),
        (("OLD", "NEW", "--test-overall"), "no overall score: gsm8k is the only condition"),
        (("--as", "router=OLD"), "--as takes the place of models and needs --out"),
        (("--as", "router=OLD", "--out", "x", "--weights", "a=1"), "have no effect with --as"),
    ],
)
def test_a_wrong_comparison_is_one_line(moegraft, write_scores, arguments, message):
    paths = {name: write_scores(name.lower(), gsm8k=BOTH) for name in ("OLD", "NEW")}
    given = [paths.get(text, text) for text in arguments]
    given = [str(text).replace("=OLD", f"={paths['OLD']}") for text in given]
    code, out, err = moegraft("compare", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_existing_results_need_no_torch(write_scores, write_suite):
    old, new = write_scores("old", gsm8k=BOTH), write_scores("new", gsm8k=BETTER)
    suite = write_suite({"gsm8k": 5.0})
    for arguments in (["compare", old, new], ["gate", old, new, "--suite", suite]):
        script = (
            "import sys; from moegraft.cli import main\n"
            f"sys.argv = ['moegraft', *{[str(a) for a in arguments]!r}]\n"
            "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
            "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("verdict", "code", "new"),
    [
        ("pass", 0, BETTER),
        ("regressed", 1, [1] * 30 + [0] * 70),
        ("inconclusive", 2, [0, *BOTH[:-1]]),
    ],
)
def test_gate_ends_with_a_status(  # noqa: PLR0917
    moegraft, write_scores, write_suite, verdict, code, new
):
    paths = write_scores("old", gsm8k=BOTH), write_scores("new", gsm8k=new)
    suite = write_suite({"gsm8k": 2.0})
    report = suite.with_suffix(".xml")
    found, out, err = moegraft("gate", *paths, "--suite", suite, "--junit", report)
    assert (found, err) == (code, "")
    assert out.rstrip().endswith(verdict)
    (case,) = ElementTree.parse(report).getroot()
    assert case.get("name") == "gsm8k"
    data = json.loads(moegraft("gate", *paths, "--suite", suite, "--json")[1])
    assert (data["verdict"], data["old"], data["new"]) == (verdict, "old", "new")


def test_gate_plans_from_numbers_or_results(moegraft, write_scores, write_suite, tmp_path):
    suite = tmp_path / "plan.yaml"
    suite.write_text(
        "conditions:\n"
        "  - {condition: ifeval, margin_points: 3.5, num_items: 541}\n"
        "  - {condition: gsm8k, margin_points: 2.0, num_items: 1319}\n"
    )
    code, out, err = moegraft("gate", "--plan", "--suite", suite)
    assert (code, err) == (2, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[:7].strip()}
    assert (rows["ifeval"][4], rows["ifeval"][6]) == ("3.4", "yes")
    assert (rows["gsm8k"][4], rows["gsm8k"][6]) == ("2.2", "no")
    old = write_scores("old", gsm8k=BOTH)
    (planned,) = json.loads(
        moegraft("gate", old, "--plan", "--suite", write_suite({"gsm8k": 8.0}), "--json")[1]
    )
    assert planned["num_items"] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("OLD",), "name the deployed model and the candidate"),
        (("OLD", "SHORT"), "gsm8k: 1 of 100 items of old are missing elsewhere"),
        (("OLD", "OTHER"), "no condition in common"),
    ],
)
def test_wrong_input_of_gate_is_neither_a_regression_nor_inconclusive(
    moegraft, write_scores, write_suite, arguments, message
):
    paths = {
        "OLD": write_scores("old", gsm8k=BOTH),
        "SHORT": write_scores("short", gsm8k=BOTH[:-1]),
        "OTHER": write_scores("other", mmlu=BOTH),
    }
    suite = write_suite({"gsm8k": 2.0})
    code, out, err = moegraft("gate", *(paths[name] for name in arguments), "--suite", suite)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert message in err
    code, _, err = moegraft("gate", "a", "b", "--suite", suite.with_name("none.yaml"))
    assert (code, "none.yaml: no such recipe file" in err) == (3, True)


def test_foreign_results_become_a_run_with_effects_and_a_report(moegraft, write_scores, tmp_path):
    # Attention gives 20 points, experts 30, each on items of its own: no interaction.
    shapes = {
        "host": (0, 0),
        "attention": (20, 0),
        "experts": (0, 30),
        "attention+experts": (20, 30),
    }
    mapped = []
    for name, (attention, experts) in shapes.items():
        scores = [1] * attention + [0] * (20 - attention) + [1] * experts + [0] * (30 - experts)
        path = write_scores(f"file{len(mapped)}", arc=scores + [0] * 50)
        reversed_name = "+".join(reversed(name.split("+")))
        mapped += ["--as", f"{reversed_name}={path}"]
    run = tmp_path / "run"
    code, out, err = moegraft("compare", *mapped, "--out", run)
    assert code == 0, err
    assert f"report: {run / 'report.html'}" in out
    summary = json.loads((run / "summary.json").read_text())
    effects = {
        (e["kind"], tuple(e["components"])): e["value"] for e in summary["subset"]["effects"]
    }
    assert effects["shapley", ("attention",)] == pytest.approx(0.2)
    assert effects["shapley", ("experts",)] == pytest.approx(0.3)
    assert effects["interaction", ("attention", "experts")] == pytest.approx(0.0)
    code, _, err = moegraft("compare", *mapped, "--out", run)
    assert (code, "is not empty; choose another --out" in err) == (2, True)
    code, _, err = moegraft("compare", "--as", f"heads={path}", "--out", tmp_path / "other")
    assert (code, "expected host, donor, or components" in err) == (2, True)
