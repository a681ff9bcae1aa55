import json

import pytest


def test_blame_of_a_run_takes_its_recipe_and_its_own_transfer_recipe_works(
    moegraft, chat_pair, tiny_tasks, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(f"host: {chat_pair[0]}\ndonor: {chat_pair[1]}\nseed: 5\n")
    asked = ("--condition", "tiny_choose", "--items", 6, "--top", 2, "--include", tiny_tasks)
    code, out, err = moegraft("blame", run, *asked, "--device", "cpu")
    assert code == 0, err
    assert "attributions of all weights add up to" in out
    folder = run / "blame" / "tiny_choose-experts"
    assert f"compose: moegraft transfer {folder / 'recipe.yaml'} --out DIR" in out
    content = json.loads((folder / "blame.json").read_text())
    assert content["recipe"]["seed"] == 5
    assert content["command"].startswith(f"moegraft blame {run}")
    code, out, err = moegraft("transfer", folder / "recipe.yaml", "--out", tmp_path / "made")
    assert code == 0, err
    assert (tmp_path / "made" / "config.json").exists()


def test_json_goes_to_stdout_and_notes_to_stderr(moegraft, chat_pair, tiny_tasks, tmp_path):
    pair = ("--host", chat_pair[0], "--donor", chat_pair[1])
    asked = ("--condition", "tiny_choose", "--items", 4, "--top", 1, "--include", tiny_tasks)
    how = ("--units", "components", "--device", "cpu", "--out", tmp_path / "b", "--json")
    code, out, err = moegraft("blame", *pair, *asked, *how)
    assert code == 0, err
    assert json.loads(out)["recipe"]["units"] == "components"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "a"), "error: --donor and --condition missing; or give a run directory\n"),
        (("nowhere", "--condition", "x"), "no recipe.yaml found"),
        (("--host", "a", "--donor", "b", "--condition", "c"), "error: --out missing"),
        (
            ("--host", "a", "--donor", "b", "--condition", "c", "--top", "0"),
            "top: expected at least 1, got 0",
        ),
        (
            ("--host", "a", "--donor", "b", "--condition", "c", "--units", "heads"),
            "error: blame: units:",
        ),
    ],
)
def test_wrong_input_is_one_line(moegraft, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = moegraft("blame", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
