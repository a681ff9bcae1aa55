import json
import logging
import subprocess
import sys

import pytest

from moegraft.cli import options


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, chat_pair):
    path = tmp_path_factory.mktemp("recipes") / "sweep.yaml"
    path.write_text(
        f"host: {chat_pair[0]}\ndonor: {chat_pair[1]}\nlimit: 9\n"
        "configurations: [experts]\nconditions: [tiny_write, tiny_choose]\n"
    )
    return path


def test_a_sweep_prints_table_2_and_the_report_and_exports_without_torch(
    moegraft, recipe_file, tiny_tasks, tmp_path
):
    run = tmp_path / "run"
    common = ("--out", run, "--include", tiny_tasks, "--device", "cpu")
    code, out, err = moegraft("sweep", recipe_file, *common, "--limit", 3)
    assert code == 0, err
    assert "Table 2" in out
    assert "experts" in out
    assert f"report: {run / 'report.html'}" in out
    assert "sweep: 18 of 18 items" in err
    assert err.startswith("resident on cpu: peak ")
    assert err.count("without activations") == 1
    assert not logging.getLogger("moegraft").handlers  # in a process that goes on
    assert "limit: 3" in (run / "recipe.yaml").read_text()

    code, out, err = moegraft("sweep", recipe_file, *common, "--limit", 3)
    assert (code, "items/s" in err) == (0, False)
    assert moegraft("report", run, "--style", "paper")[0] == 0
    assert json.loads(moegraft("report", run, "--json")[1])["schema"] == 2
    code, out, err = moegraft("report", run, "--export", "inspect")
    assert (code, err) == (2, "error: --export: expected lm-eval, got 'inspect'\n")

    script = (
        "import sys; from moegraft.cli import main\n"
        f"sys.argv = ['moegraft', 'report', {str(run)!r}, '--export', 'lm-eval']\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert 'torch' not in sys.modules and 'lm_eval' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples_") == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "a"], "--donor missing; name them, or a recipe file"),
        (["--host", "a", "--donor", "b", "--limit", "few"], "--limit: expected a number or 'all'"),
        (["--host", "a", "--donor", "b", "--shard", "3/2"], "--shard: expected i/n with i from 1"),
        (["--host", "a", "--donor", "b", "--memory-budget", "big"], "expected a size such as 16GB"),
        (["--host", "a", "--donor", "b", "--preset", "papre"], "preset: "),
        (["--host", "a", "--donor", "b", "--device-map", "none.yaml"], "none.yaml: cannot be read"),
        (["--host", "a", "--donor", "b", "--chat-template-kwargs", "thinking"], "JSON object, got"),
        (["--host", "a", "--donor", "b", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (["missing.yaml"], "missing.yaml: no such recipe file"),
        (["--host", "a", "--donor", "b", "--configurations", "router,routre"], "did you mean"),
        (["--host", "absent", "--donor", "b"], "absent: no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing_behind(
    moegraft, tmp_path, arguments, message
):
    code, out, err = moegraft("sweep", *arguments, "--out", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_device_map_is_recorded_and_changes_no_result(
    moegraft, recipe_file, tiny_tasks, tmp_path
):
    parts = {"model": "cpu", "lm_head": "cpu"}
    (tmp_path / "map.yaml").write_text(json.dumps(parts))
    rows, envs = [], []
    by_map = ("--device-map", tmp_path / "map.yaml")
    for name, where in (("whole", ("--device", "cpu")), ("parts", by_map)):
        run = tmp_path / name
        asked = ("--out", run, "--include", tiny_tasks, "--limit", 2, *where)
        code, _, err = moegraft("sweep", recipe_file, *asked)
        assert code == 0, err
        rows.append((run / "items" / "experts" / "tiny_choose.jsonl").read_text())
        envs.append(json.loads((run / "env.json").read_text()))
    assert rows[0] == rows[1]
    assert envs[0]["device_map"] is None
    assert envs[1]["device_map"]["model.layers.1"] == "cpu"
    assert envs[0]["device"] == envs[1]["device"]
    (tmp_path / "map.yaml").write_text("[cpu]")
    code, _, err = moegraft("sweep", recipe_file, "--device-map", tmp_path / "map.yaml", *asked[:2])
    assert (code, err.count("\n")) == (2, 1)
    assert "map.yaml: expected lines such as 'model.layers.0: cuda:0'" in err


def test_a_report_of_nothing_is_one_line(moegraft, tmp_path):
    code, _, err = moegraft("report", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "no item results found" in err


def test_ctrl_c_says_how_to_resume(moegraft, recipe_file, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("moegraft.sweep.execute.run_sweep", interrupted)
    code, _, err = moegraft("sweep", recipe_file, "--out", tmp_path / "my run")
    assert code == 130
    assert err.count("\n") == 1
    assert f"Resume with: moegraft sweep {recipe_file} --out '{tmp_path}/my run'" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GB", 16 * 10**9), ("1.5 GiB", 3 * 2**29), ("2000", 2000), ("3m", 3 * 10**6)],
)
def test_memory_is_read_with_its_unit(text, expected):
    assert options.parse_bytes(text) == expected


def test_names_are_split_at_commas_outside_brackets():
    found = options.split_list(["router,experts[0-3,7]", "norm"])
    assert found == ["router", "experts[0-3,7]", "norm"]
