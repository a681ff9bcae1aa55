import json
import subprocess
import sys

import pytest

from moegraft.cli import main
from moegraft.evals.lock import writer_lock
from moegraft.xpert.counts import read_counts
from moegraft.xpert.identify import identify_experts
from small_knowledge import target_config


@pytest.fixture
def moegraft(monkeypatch, capsys):
    """Run the command line in this process on 80 columns: (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moegraft", "xpert", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        out, err = capsys.readouterr()
        assert "…" not in out  # no cell is cut
        assert "it/s]" not in err and " examples [" not in err  # no bars of other libraries
        return code if isinstance(code, int) else 0, out, err

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains")
    (folder / "rain.txt").write_text("The rain fell over seven hills and nobody saw it. " * 8)
    records = [{"text": f"{i} and {i} is {2 * i}"} for i in range(30)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "measured.jsonl"
    rows = [
        {"model": model, "domain": domain, "layer": layer, "counts": own, "top_k": 1}
        for model, shift in (("base", 0), ("tuned", 10))
        for domain, own in (("a", {"0": 60 + shift, "1": 30 - shift, "2": 10}), ("b", {"1": 100}))
        for layer in (0, 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chosen(counts, tmp_path_factory):
    """A selection of the counted model, and the config of a target."""
    folder = tmp_path_factory.mktemp("chosen")
    found = identify_experts(read_counts(counts, model="base"), num_best=1).as_dict()
    (folder / "selection.json").write_text(json.dumps(found))
    (folder / "target.json").write_text(json.dumps(target_config()))
    return {"selection": folder, "target": folder / "target.json"}


def test_counts_alone_rank_experts(moegraft, counts, tmp_path):
    what = ("--counts", counts, "--model", "base", "--top", 1)
    code, text, err = moegraft("identify", *what, "--against", "tuned", "--out", tmp_path / "o")
    assert code == 0, err
    assert "Experts that serve every domain, by a_minus_c" in text
    assert "0 of 2 chosen experts are used at least as often as chance in every domain" in text
    assert "Routing of tuned against base" in text and "One domain" not in text
    _, text, _ = moegraft("identify", *what, "--domain", "a")
    assert "One domain: nothing tells experts of all domains from specialists." in text
    found = json.loads((tmp_path / "o" / "selection.json").read_text())
    assert [layer["chosen"][0]["expert"] for layer in found["layers"]] == [1, 1]
    assert found["shift"]["changes"][0]["moved"] == pytest.approx(0.1)
    for figure in ("expert-domains", "expert-deviation"):
        for ending in (".svg", ".png", "-dark.svg"):
            assert (tmp_path / "o" / f"{figure}{ending}").stat().st_size > 1000
    code, text, _ = moegraft("identify", *what, "--score", "mean", "--domain", "a", "--json")
    assert json.loads(text)["layers"][0]["chosen"][0]["expert"] == 0


def test_texts_to_a_choice_to_knowledge(moegraft, chat_pair, corpus, tmp_path):
    live = (chat_pair[0], "--data", corpus, "--window", 64, "--device", "cpu", "--top", 2)
    code, text, err = moegraft("identify", *live, "--out", tmp_path / "o", "--score", "gate_mass")
    assert code == 0, err
    assert "tokens read" in err
    found = json.loads((tmp_path / "o" / "selection.json").read_text())
    assert found["num_windows"] == [7, 8]
    assert all(0 <= one["stability"] <= 1 for one in found["layers"][0]["chosen"])
    _, again, _ = moegraft("identify", *live, "--out", tmp_path / "o", "--json")
    counted = ("--counts", tmp_path / "o" / "windows.jsonl", "--top", 2, "--json")
    assert json.loads(moegraft("identify", *counted)[1]) == json.loads(again)
    take = ("decompose", chat_pair[0], "--selection", tmp_path / "o", "--device", "cpu")
    code, text, err = moegraft(*take, "--out", tmp_path / "k", "--ranks", "0.5,0.5,1")
    assert code == 0, err
    assert "2 of 2 layers decomposed" in err
    assert "beta" in text and "kept: share of the squared norm" in text
    assert (tmp_path / "k" / "layer-001.safetensors").exists()
    code, _, err = moegraft(*take, "--out", tmp_path / "k")
    assert (code, err.count("\n")) == (2, 1)
    assert "exists and is not empty" in err
    sizes = json.loads((chat_pair[0] / "config.json").read_text())
    sizes |= {"num_experts": 1, "num_experts_per_tok": 1, "num_hidden_layers": 3}
    (tmp_path / "target.json").write_text(json.dumps(sizes))
    start = ("init", tmp_path / "k", "--target", tmp_path / "target.json", "--donor", chat_pair[0])
    code, text, err = moegraft(*start, "--out", tmp_path / "t", "--inherit", "trunk")
    assert (code, err.count("\n")) == (2, 1)
    assert "--depth first: the target has 3 layers and the knowledge 2" in err
    more = ("--depth", "uniform", "--inherit", "trunk", "--dtype", "bfloat16")
    code, text, err = moegraft(*start, "--out", tmp_path / "t", *more)
    assert code == 0, err
    assert "inherited from the donor" in text
    assert "Donor's layer behind each: 0, 1, 1" in text
    assert {"model.safetensors", "config.json", "tokenizer.json", "provenance.json"} <= {
        file.name for file in (tmp_path / "t").iterdir()
    }
    more = ("--depth", "repeat", "--json", "--out", tmp_path / "u", "--device", "cpu")
    code, text, err = moegraft(*start, *more, "--inherit", "trunk", "--fit", corpus)
    assert json.loads(text)["mapped"]["layers"] == [0, 1, 0]
    assert all(0 < share <= 1 for share in json.loads(text)["fitted"].values())
    assert "tokens read" in err
    code, text, err = moegraft(
        *start, "--depth", "repeat", "--out", tmp_path / "v", "--fit", corpus
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "--fit: expected --donor and --inherit trunk" in err
    other = ("decompose", chat_pair[1], "--selection", tmp_path / "o", "--out", tmp_path / "x")
    code, _, err = moegraft(*other, "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "is another checkpoint" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["identify"], "expected either CHECKPOINT with --data, or --counts"),
        (["identify", "x"], "expected texts, with --data"),
        (["identify", "x", "--data", "y", "--model", "z"], "it goes with --counts; drop it"),
        (["identify", "--counts", "{counts}", "--data", "y"], "it goes with CHECKPOINT; drop it"),
        (["identify", "--counts", "{counts}"], "several models; choose with --model: base, tuned"),
        (["identify", "--counts", "none"], "none: cannot be read"),
        (["identify", "--counts", "{counts}", "--score", "best"], "score 'best': expected one of"),
        (
            ["identify", "--counts", "{counts}", "--model", "base", "--top", "4"],
            "--top 4: base has 3 experts per layer; expected a number from 1 to 3",
        ),
        (["identify", "nano:base", "--data", "x", "--top", "9"], "nano:base has 8 experts"),
        (["identify", "nano:base", "--data", "none.txt"], "none.txt: no such file or folder"),
        (["identify", "nano:base", "--data", "x="], "'x=': names no texts; expected a path, a"),
        (["identify", "nano:base", "--data", "hub:"], "'hub:': names no texts"),
        (["identify", "x", "--data", "y", "--seed", "-1"], "--seed: expected a number of at least"),
        (["identify", "x", "--data", "y", "--batch-tokens", "0"], "--batch-tokens: expected a"),
        (["identify", "--counts", "{counts}", "--top-k", "0"], "--top-k: expected a number of at"),
        (
            ["decompose", "nano:base", "--selection", "{selection}", "--out", "o", "--device", "x"],
            "device 'x': expected auto, cpu, cuda or cuda:N",
        ),
        (
            ["init", "none", "--target", "{target}", "--out", "o", "--fit-tokens", "0"],
            "--fit-tokens: expected a number of at least 2, got 0",
        ),
        (
            ["decompose", "nano:base", "--selection", "none", "--out", "o"],
            "none: no readable selection; make one with `moegraft xpert identify`",
        ),
        (
            ["init", "none", "--target", "none.json", "--out", "o"],
            "none.json: no readable config.json of a model",
        ),
        (
            ["init", "none", "--target", "x", "--out", "o", "--scale", "2"],
            "--scale 2: expected one",
        ),
        (
            ["decompose", "nano:base", "--selection", "x", "--out", "o", "--ranks", "many"],
            "--ranks many: expected half, published, full, energy=SHARE",
        ),
    ],
)
def test_wrong_input_is_one_line(moegraft, counts, chosen, arguments, message):
    given = [argument.format(counts=counts, **chosen) for argument in arguments]
    code, out, err = moegraft(*given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_domain_without_text_is_one_line(moegraft, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    code, _, err = moegraft("identify", "nano:base", "--data", tmp_path / "empty.txt")
    assert (code, err.count("\n")) == (2, 1)  # read before the model is loaded
    assert "no text found" in err


def test_two_processes_never_count_into_one_folder(moegraft, chat_pair, corpus, tmp_path):
    what = ("identify", chat_pair[0], "--data", corpus, "--device", "cpu", "--out", tmp_path / "o")
    with writer_lock(tmp_path / "o", (1, 1)):
        code, _, err = moegraft(*what)
    assert code == 2 and "is already writing" in err.splitlines()[-1]
    assert not (tmp_path / "o" / "windows.jsonl").exists()


def test_counts_are_ranked_without_torch(counts):
    script = (
        "import sys; from moegraft.cli import main\n"
        f"sys.argv = ['moegraft', 'xpert', 'identify', '--counts', {str(counts)!r}, "
        "'--model', 'base', '--top', '1']\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_step_works_from_a_recipe_and_flags_override_it(moegraft, chat_pair, tmp_path):
    (tmp_path / "rain.txt").write_text("The rain fell over seven hills and nobody saw it. " * 8)
    recipes = {
        "identify": f"checkpoint: {chat_pair[0]}\ndata: rain={tmp_path / 'rain.txt'}\ntop: 3\n"
        f"device: cpu\nout: {tmp_path / 'o'}\n",
        "decompose": f"donor: {chat_pair[0]}\nselection: {tmp_path / 'o'}\nranks: full\n"
        f"align: true\nsafe: false\nout: {tmp_path / 'k'}\n",
        "init": f"knowledge: {tmp_path / 'k'}\ntarget: {chat_pair[0]}\nseed: 3\n"
        f"out: {tmp_path / 't'}\n",
    }
    for command, text in recipes.items():
        (tmp_path / f"{command}.yaml").write_text(text)
        more = ("--top", 2) if command == "identify" else ()
        code, _, err = moegraft(command, "--recipe", tmp_path / f"{command}.yaml", *more)
        assert code == 0, err
    known = json.loads((tmp_path / "k" / "knowledge.json").read_text())
    assert known["selection"]["num_best"] == 2
    assert known["decomposition"]["align"] and not known["decomposition"]["safe"]
    about = json.loads((tmp_path / "t" / "provenance.json").read_text())
    assert about["adaptation"]["seed"] == 3 and about["target"] == "olmoe"
    for content, message in (
        ("tops: 3", "tops: unknown key; expected some of checkpoint, data"),
        ("- a", "expected a mapping of recipe keys"),
        ("a: [", "not valid YAML"),
        ("top: two", "valid integer"),
        ("top: [1, 2]", "bad.yaml: top: expected one value, got [1, 2]"),
        ("data: {a: b}", "bad.yaml: data: expected text, numbers or yes and no, got {'a': 'b'}"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        code, out, err = moegraft("identify", "--recipe", tmp_path / "bad.yaml")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    code, _, err = moegraft("init", "--recipe", tmp_path / "none.yaml")
    assert (code, err.count("\n")) == (2, 1) and "none.yaml: cannot be read" in err


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_starts_are_compared_on_the_nano_model(moegraft, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "donor: nano:base\ndata: [math=nano_math, reading=nano_reading]\nlimit: 40\n"
        "target: {num_experts: 1, num_experts_per_tok: 1, num_hidden_layers: 2}\n"
        "training: {block: 32}\nvalidation_blocks: 4\nheld_out: 0.3\n"
    )
    fewer = ("--arms", "random,fitted,xpert", "--protocols", "trunk", "--seeds", 2, "--steps", 4)
    small = ("--batch", 2, "--eval-every", 2, "--device", "cpu", "--top", 2)
    command = ("compare", recipe, "--out", tmp_path / "r", *fewer, *small)
    code, text, err = moegraft(*command)
    assert code == 0, err
    assert "olmoe from base, protocol trunk" in text
    assert "xpert ends below random (-" in text
    assert "24 of 24 steps" in err
    files = {file.name for file in (tmp_path / "r").iterdir()}
    assert {
        "recipe.yaml",
        "selection.json",
        "summary.json",
        "report.md",
        "figures",
        "DONE",
    } <= files
    assert "## Protocol trunk" in (tmp_path / "r" / "report.md").read_text()
    code, text, _ = moegraft(*command, "--json")
    arms = json.loads(text)["protocols"]["trunk"]["arms"]
    assert arms["xpert"]["final"] < arms["random"]["final"]
    assert arms["fitted"]["first"] != arms["xpert"]["first"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "xpert compare: expected a recipe file, or --donor; see --help"),
        (["--donor", "nano:base", "--data", "x"], "expected a recipe file, or --target"),
        (["--donor", "x", "--data", "y", "--set", "z"], "--set z: expected KEY=VALUE"),
        (["--target", "x", "--set", "a=1"], "--set: changes the donor's config, and --target"),
        (
            [
                "--donor",
                "nano:base",
                "--data",
                "nano_math",
                "--set",
                "hidden_size=96",
                "--arms",
                "a",
            ],
            "arms: expected some of random, matched",
        ),
        (
            ["--donor", "nano:base", "--data", "none.txt", "--set", "num_hidden_layers=2"],
            "none.txt: no such file or folder",
        ),
        (
            ["--donor", "nano:base", "--data", "none.txt", "--set", "num_experts=1"],
            "target: 2 experts per token of 1; expected at most as many",
        ),
    ],
)
def test_a_wrong_comparison_is_one_line(moegraft, tmp_path, arguments, message):
    code, out, err = moegraft("compare", "--out", tmp_path / "r", *arguments, "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "r").exists()
