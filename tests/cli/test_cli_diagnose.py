import json
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from moegraft.cli.diagnose_tables import show_diagnosis


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "rain.txt").write_text("The rain fell over seven hills and nobody saw it. " * 5)
    records = [{"text": f"{i} and {i} is {2 * i}", "note": "sum"} for i in range(20)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def test_a_profile_names_every_domain_and_layer(moegraft, chat_pair, corpus, tmp_path):
    out = tmp_path / "profile"
    code, text, err = moegraft("profile", chat_pair[0], "--data", corpus, "--out", out)
    assert code == 0, err
    assert "4 experts, top-2; tokens: rain 250" in text
    assert "between domains" in text
    found = json.loads((out / "profile.json").read_text())
    assert found["domains"] == ["rain", "sums"]
    for counts, num_tokens in zip(found["counts"], found["num_tokens"], strict=True):
        assert [sum(layer) for layer in counts] == [2 * num_tokens] * 2
    for name in ("svg", "png"):
        assert (out / f"routing-frequency.{name}").stat().st_size > 1000


def test_a_profile_of_tasks_and_configurations_as_json(moegraft, chat_pair, corpus, tiny_tasks):
    common = ("--include", tiny_tasks, "--json", "--data", f"a={corpus / 'rain.txt'}")
    code, own, err = moegraft("profile", chat_pair[0], *common, "--data", "tiny_choose")
    assert code == 0, err
    assert "tokens read" in err
    host = json.loads(own)
    assert host["domains"] == ["a", "tiny_choose"]
    swap = ("--donor", chat_pair[1], "--configuration", "router", "--data", "tiny_choose")
    _, mixed, _ = moegraft("profile", chat_pair[0], *common, *swap)
    _, donor, _ = moegraft("profile", chat_pair[1], *common, "--data", "tiny_choose")
    assert host["counts"] != json.loads(mixed)["counts"] != json.loads(donor)["counts"]
    assert json.loads(mixed)["configuration"] == "router"


def _without_preflight(err):
    return [line for line in err.splitlines() if not line.startswith("resident on cpu: peak ")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["--data", "{corpus}/sums.jsonl", "--field", "txt"], "no text in field 'txt'; fields"),
        (["--data", "{corpus}", "--data", "{corpus}"], "two sources are called 'rain'"),
        (["--data", "{corpus}", "--window", "1"], "--window: expected a number of at least 2"),
        (["--data", "{corpus}", "--donor", "x"], "--donor and --configuration go together"),
    ],
)
def test_a_wrong_source_is_one_line(moegraft, chat_pair, corpus, arguments, message):
    given = [argument.format(corpus=corpus) for argument in arguments]
    code, out, err = moegraft("profile", chat_pair[0], *given)
    assert (code, out, len(_without_preflight(err))) == (2, "", 1)
    assert message in err


def test_a_dense_checkpoint_has_no_profile(moegraft, corpus, tmp_path, capsys):
    from tiny_families import build_tiny
    from tiny_sweep import byte_tokenizer

    build_tiny("llama", vocab_size=258).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    capsys.readouterr()  # saving shows a progress bar
    code, _, err = moegraft("profile", tmp_path, "--data", corpus)
    assert (code, len(_without_preflight(err))) == (2, 1)
    assert "LlamaForCausalLM has no routers" in err


def test_a_run_is_diagnosed_with_tables_figures_and_json(moegraft, chat_pair, tiny_tasks, tmp_path):
    run = tmp_path / "run"
    pair = ("--host", chat_pair[0], "--donor", chat_pair[1])
    common = ("--include", tiny_tasks, "--device", "cpu")
    what = ("--configurations", "router,experts", "--conditions", "tiny_write", "--limit", 4)
    assert moegraft("sweep", *pair, *what, "--out", run, *common)[0] == 0
    code, text, err = moegraft("diagnose", run, *common)
    assert code == 0, err
    assert "4 of 4 texts read" in err
    assert "Agreement with the parents" in text
    assert "routers only" in text
    assert "the donor's router" in text
    for name in ("routing-frequency", "routing-agreement", "coadaptation"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 1000
    code, text, _ = moegraft("diagnose", run, *common, "--limit", 2, "--json")
    found = json.loads(text)
    assert found["conditions"][0]["num_texts"] == 2
    assert found == json.loads((run / "diagnose.json").read_text())
    for entry in found["coadaptation"]:
        entry["condition"] = "nano_science/0-shot"
    found["agreement"]["router+attention+experts"] = found["agreement"]["donor"]
    screen = StringIO()
    show_diagnosis(Console(width=80, file=screen), found)
    assert "…" not in screen.getvalue()
    assert moegraft("report", run)[0] == 0  # what diagnose wrote is in nobody's way
    code, _, err = moegraft("diagnose", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a run directory of `sweep`" in err


def test_help_needs_no_torch():
    script = (
        "import sys; from moegraft.cli import main\n"
        "sys.argv = ['moegraft', 'diagnose', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
