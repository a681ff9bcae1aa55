import json
import re
import shutil

import pytest
from safetensors.torch import save_file

from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.record import read_record
from tiny_bar import build_merged, train_branch
from tiny_families import build_tiny, stored_tensors


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bar") / "anchor"
    build_tiny("olmo2").save_pretrained(folder)
    return folder


def test_branch_prints_the_cost_before_and_the_distance_after(moegraft, anchor, tmp_path):
    what = ("bar", "branch", "--anchor", anchor, "--domain", "math")
    code, text, err = moegraft(*what, "--domains", 4, "--dry-run")
    assert code == 0, err
    assert "merged, 4 domains" in text
    assert "merged against host: 2.43 x parameters, 2.43 x active" in text
    assert "assumed: FLOPs per token: 2 per active weight" in text
    code, text, err = moegraft(*what, "--out", tmp_path / "b", "--json")
    assert code == 0, err
    assert "distance from the anchor: rounding only" in err
    found = json.loads(text)
    assert found["branch"]["start"]["distance"]["within_tolerance"]
    assert json.loads((tmp_path / "b" / "branch.json").read_text()) == found["branch"]


def test_an_anchor_that_computes_no_numbers_leaves_no_branch(moegraft, anchor, tmp_path):
    shutil.copytree(anchor, tmp_path / "a")
    tensors = stored_tensors(anchor)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    what = ("bar", "branch", "--anchor", tmp_path / "a", "--domain", "math")
    code, _, err = moegraft(*what, "--out", tmp_path / "b")
    assert (code, "a: its logits on the probe text are not finite" in err) == (2, True), err
    assert not (tmp_path / "b").exists()


def test_branch_takes_a_recipe_file_or_flags_but_not_both(moegraft, anchor, tmp_path):
    recipe = tmp_path / "branch.yaml"
    recipe.write_text(f"anchor: {anchor}\ndomain: code\nrouter: zero\n")
    code, _, err = moegraft("bar", "branch", recipe, "--out", tmp_path / "b", "--no-check")
    assert code == 0, err
    manifest = json.loads((tmp_path / "b" / "branch.json").read_text())
    assert (manifest["domain"], manifest["start"]["router"]) == ("code", "zero")
    code, _, err = moegraft("bar", "branch", recipe, "--domain", "math", "--dry-run")
    assert code == 2
    assert "the recipe says it all; drop --domain or the file" in err
    recipe.write_text(f"anchor: {anchor}\ndomain: a/b\n")
    code, _, err = moegraft("bar", "branch", recipe, "--dry-run")
    assert code == 2
    assert "expected a printable name without '/'" in err


def test_branch_says_what_is_missing(moegraft, anchor, tmp_path):
    what = ("bar", "branch", "--anchor", anchor, "--domain", "math")
    for arguments, message in (
        (("bar", "branch", "--domain", "x"), "expected a recipe file, or --anchor"),
        (what, "expected --out DIR, or --dry-run"),
        ((*what, "--dry-run", "--domains", 0), "--domains: expected a number of at least 1"),
        ((*what, "--out", tmp_path / "b", "--probe", tmp_path / "no"), "probe text cannot be read"),
    ):
        code, _, err = moegraft(*arguments)
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def branches(anchor):
    found = []
    for domain in ("math", "code"):
        recipe = BranchRecipe(str(anchor), domain)
        write_branch(plan_branch(recipe), anchor.parent / f"{domain}-start")
        shared = ("lm_head.weight",) if domain == "code" else ()
        start, out = (anchor.parent / name for name in (f"{domain}-start", domain))
        found.append(train_branch(start, out, seed=len(found), shared=shared))
    return found


def test_merge_says_what_becomes_of_each_branch(moegraft, anchor, branches, tmp_path):
    what = ("bar", "merge", "--anchor", anchor)
    what += tuple(part for branch in branches for part in ("--branch", branch))
    code, text, err = moegraft(*what, "--out", tmp_path / "m", "--shared", "lm_head=changed")
    assert code == 0, err
    assert "flex_olmo, 3 experts by method 'bar'" in text
    assert "expert 2: code" in text
    assert re.search(r"lm_head +equal +[\d.]+", text)
    assert "its router is untrained" in err
    record = json.loads((tmp_path / "m" / "merge.json").read_text())
    assert record["shared"] == {"default": "mean", "lm_head": "changed"}
    source = tmp_path / "m" / record["experts"][0]["source"]
    assert source.resolve() == branches[0].resolve()
    code, text, err = moegraft(*what, "--dry-run", "--json")
    assert (code, json.loads(text)) == (0, {"merge": None, "moved": {}})


def test_merge_refuses_in_one_line(moegraft, anchor, branches, tmp_path):
    what = ("bar", "merge", "--anchor", anchor, "--branch", branches[0])
    for more, message in (
        ((), "expected --out DIR, or --dry-run"),
        (("--dry-run", "--shared", "mean", "--shared", "first"), "a default policy was given"),
        (("--dry-run", "--branch", branches[0].parent / "math-start"), "expected one per domain"),
        (("--dry-run", "--method", "slerp"), "method: Input should be 'bar'"),
    ):
        code, _, err = moegraft(*what, *more)
        assert (code, message in err) == (2, True), err


def test_route_trains_for_each_k_and_prints_the_untrained_row_too(
    moegraft, merged, chats, tmp_path
):
    data = tuple(part for name in chats for part in ("--data", f"{name}={chats[name]}"))
    settings = ("--share", 0.5, "--held-out", 0.2, "--length", 64, "--epochs", 1, "--batch", 8)
    code, text, err = moegraft(
        "bar", "route", merged, *data, *settings, "--k", 3, "--k", 2, "--out", tmp_path / "r"
    )
    assert code == 0, err
    for row in ("k = 3, router merged, untrained", "k = 2, router trained"):
        assert row in text
    assert "weight of each expert, k = 2" in text
    assert (tmp_path / "r" / "k-2" / "merge.json").is_file()
    assert (tmp_path / "r" / "figures" / "k-3" / "routing-mass.svg").stat().st_size > 1000


def test_heal_takes_a_recipe_or_flags(moegraft, chat_pair, tmp_path):
    for place in range(6):
        (tmp_path / f"{place}.txt").write_text(f"text {place}, and then some more of it. " * 4)
    recipe = tmp_path / "heal.yaml"
    recipe.write_text(
        f"model: {chat_pair[0]}\ndata: {{texts: {tmp_path}}}\nheld_out: 0.3\nlength: 32\n"
        "train: [router, norm]\ntuning: {epochs: 1, batch: 4}\n"
    )
    code, text, err = moegraft("heal", recipe, "--out", tmp_path / "h", "--device", "cpu")
    assert code == 0, err
    assert "as composed" in text
    assert "router+norm trained" in text
    assert "all but router+norm is byte for byte as it was" in err
    code, _, err = moegraft("heal", chat_pair[0], "--out", tmp_path / "x")
    assert (code, "expected a recipe file, or --data" in err) == (2, True)
    code, _, err = moegraft("heal", chat_pair[0], "--data", "a.txt", "--data", "b/a.txt")
    assert (code, "the name 'a' stands twice" in err) == (2, True)


def test_an_upgrade_is_merged_routed_and_gated(moegraft, tmp_path, chats, tiny_tasks):
    merged = build_merged(tmp_path)
    train_branch(tmp_path / "code-start", tmp_path / "code-2", seed=9)
    data = ", ".join(f"{name}={chats[name]}" for name in chats)
    recipe = tmp_path / "upgrade.yaml"
    recipe.write_text(
        f"merged: {merged}\nsubject: {tmp_path / 'code-2'}\nout: {tmp_path / 'new'}\n"
        f"data: [{data}]\nshare: 0.5\nheld_out: 0.2\nlength: 64\n"
    )
    (tmp_path / "tuning.yaml").write_text("epochs: 1\nbatch: 8\n")
    suite = tmp_path / "suite.yaml"
    task = tiny_tasks / "tiny_choose.yaml"
    suite.write_text(
        f"conditions: [{{condition: {task}, margin_points: 90}}]\nlimit: 12\nchat_template: false\n"
    )
    more = ("--tuning", tmp_path / "tuning.yaml", "--suite", suite)
    code, text, err = moegraft("bar", "upgrade", "--recipe", recipe, *more)
    assert code == 0, err
    assert "k = 3, router trained" in text
    assert f"against {merged}: pass" in err
    assert "anchor: pass" in err
    record = json.loads((tmp_path / "new" / "merge.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["route"]
    assert record["experts"][1]["source"] == "../code-2"
    assert not (tmp_path / "new.merged").exists()
    code, text, err = moegraft("bar", "report", tmp_path / "new", "--out", tmp_path / "report")
    assert code == 0, err
    assert "growing to" in text
    assert "assumed: growing: the router is trained after every added domain" in text
    assert json.loads((tmp_path / "report" / "ledger.json").read_text())["domains"]
    assert (tmp_path / "report" / "figures" / "cost.svg").stat().st_size > 1000
    code, _, err = moegraft("bar", "remove", merged, "code", "--out", tmp_path / "one")
    assert (code, "expected --data to train the routers on" in err) == (3, True)
    code, _, err = moegraft(
        "bar", "remove", merged, "code", "--out", tmp_path / "one", "--no-route"
    )
    assert code == 0, err
    assert "nothing tells what this model has lost" in err


def test_domains_are_added_and_removed_by_recipes(moegraft, tmp_path, chats):
    merged = build_merged(tmp_path)
    write_branch(plan_branch(BranchRecipe(str(tmp_path / "anchor"), "tool")), tmp_path / "start")
    train_branch(tmp_path / "start", tmp_path / "tool", seed=3)
    (tmp_path / "tuning.yaml").write_text("epochs: 1\nbatch: 8\n")
    data = ", ".join(f"{name}={chats[name]}" for name in chats)
    recipe = tmp_path / "add.yaml"
    recipe.write_text(
        f"merged: {merged}\nsubject: {tmp_path / 'tool'}\nout: {tmp_path / 'three'}\n"
        f"data: [{data}]\nshare: 0.5\nheld_out: 0.2\nlength: 64\ntuning: {tmp_path}/tuning.yaml\n"
    )
    code, text, err = moegraft("bar", "add", "--recipe", recipe)
    assert (code, "k = 4, router trained" in text) == (0, True), err
    assert read_record(tmp_path / "three").domains == ("math", "code", "tool")
    recipe.write_text(
        f"merged: {tmp_path / 'three'}\nsubject: code\nout: {tmp_path / 'two'}\nroute: false\n"
    )
    code, _, err = moegraft("bar", "remove", "--recipe", recipe)
    assert (code, read_record(tmp_path / "two").domains) == (0, ("math", "tool")), err
    recipe.write_text(f"merged: {merged}\nsubjekt: code\nout: {tmp_path / 'x'}\n")
    code, _, err = moegraft("bar", "remove", "--recipe", recipe)
    assert (code, "subjekt: unknown key; expected some of merged, subject" in err) == (3, True)


def test_a_revision_takes_no_other_merge_for_its_own(moegraft, tmp_path, chats):
    merged, out = build_merged(tmp_path), tmp_path / "new"
    train_branch(tmp_path / "code-start", tmp_path / "code-2", seed=9)
    shutil.copytree(merged, tmp_path / "new.merged")
    what = ("bar", "upgrade", merged, tmp_path / "code-2", "--data", f"a={chats['math']}")
    code, _, err = moegraft(*what, "--out", out)
    assert (code, "new.merged: holds another merge; remove it" in err) == (3, True), err
    assert read_record(tmp_path / "new.merged") == read_record(merged) and not out.exists()
    code, _, err = moegraft(*what, "--out", tmp_path / "code-2")
    assert (code, "the output is the input" in err) == (3, True), err
    assert not (tmp_path / "code-2.merged").exists()
    for more, message in (
        (("--out", merged / "in"), "the output lies inside the input"),
        (("--out", out, "--suite", tmp_path / "no.yaml"), "no.yaml: no such recipe file"),
        (("--out", out, "--where", "code"), "--where code: expected DOMAIN=FOLDER"),
    ):
        code, _, err = moegraft("bar", "remove", merged, "code", "--no-route", *more)
        assert (code, message in err) == (3, True), err
    assert not out.exists()


def test_a_home_folder_is_no_folder_called_tilde(moegraft, anchor, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    what = ("bar", "branch", "--anchor", anchor, "--domain", "math", "--out=~/b")
    code, _, err = moegraft(*what)
    assert (code, "distance from the anchor: rounding only" in err) == (0, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
