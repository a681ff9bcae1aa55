import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.card import base_model, public_name
from moegraft.errors import OutputError, RecipeError
from moegraft.transfer import apply_plan
from moegraft.transfer.provenance import provenance
from moegraft.transfer.publish import check_push, find_licence, push
from small_hub import small_hub

MIT = "---\nlicense: mit\nlanguage: en\n---\n# card\n"


def test_the_card_is_what_huggingface_hub_accepts(plan, vary, olmoe_pair, tmp_path):
    host = vary("a host", source=olmoe_pair[0], files={"README.md": MIT})
    out = apply_plan(plan("experts[1]", host=host), tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert card.data.base_model == ["a-host", "donor"]
    assert card.data.base_model_relation == "merge"
    assert card.data.library_name == "transformers"
    assert {"moegraft", "merge", "moe"} <= set(card.data.tags)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    for name in card.data.base_model:
        validate_repo_id(name)


def test_no_local_path_is_in_card_or_provenance(plan, tmp_path):
    out = apply_plan(plan("router"), tmp_path / "out", verify=True)
    for name in ("README.md", "provenance.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert "/tmp" not in text
        assert "host" in text


def test_the_licence_is_the_stated_one_or_the_recipes(plan, vary, olmoe_pair):
    host = vary("h", source=olmoe_pair[0], files={"README.md": MIT})
    other = "---\nlicense: other\nlicense_name: x\nlicense_link: y\n---\n"
    donor = vary("d", files={"README.md": other})
    assert find_licence(plan("router", host=host)).identifier == "mit"
    assert find_licence(plan("router", donor=donor)).name == "x"
    assert find_licence(plan("router")).identifier is None
    assert find_licence(plan("router", host=host, donor=donor, licence="cc")).identifier == "cc"
    with pytest.raises(RecipeError, match="licences differ"):
        find_licence(plan("router", host=host, donor=donor))


@pytest.mark.parametrize("card", ["", "no front matter", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_a_card_that_states_no_licence_is_no_error(plan, vary, card):
    assert find_licence(plan("router", donor=vary(files={"README.md": card}))).identifier is None


def named(plan, source, path=None, revision=None):
    host = plan("router").host
    return Checkpoint(source, path or host.path, host.config, host.family, host.tensors, revision)


def test_sources_are_named_without_their_paths(plan, tmp_path):
    assert public_name(named(plan, "org/name@main", revision="abc")) == "org/name"
    assert public_name(named(plan, "nano:rlvr")) == "nano:rlvr"
    assert base_model(named(plan, "nano:rlvr")) == "nano-rlvr"
    cached = tmp_path / "models--allenai--OLMoE/snapshots/123"
    assert public_name(named(plan, str(cached), cached)) == "allenai/OLMoE"
    odd = tmp_path / "mein Modell..v2--x"
    assert base_model(named(plan, str(odd), odd)) == "mein-Modell-v2-x"


def test_provenance_accounts_for_every_byte_and_tensor(plan):
    made = plan("experts[1-2]", "router", layers="0")
    record = provenance(made, "mit")
    assert sum(row["nbytes"] for row in record["tensors"]) == record["output"]["bytes"]
    assert record["selections"][0]["tensors"] == 1 + 2 * 3
    donor = made.donors["d"]
    unused = sum(record["unused_donor_tensors"]["d"].values())
    assert unused + record["selections"][0]["tensors"] == len(donor.tensors)
    assert record["sources"]["d"]["files"] == donor.header_hashes()
    assert record["byte_exact"] is True
    assert record["licence"] == "mit"


@pytest.mark.parametrize("repo", ["name", "a/b/c", "org/na me", "org/", "-/x y"])
def test_a_push_needs_the_name_of_a_repository(repo):
    with pytest.raises(RecipeError, match="expected the name of a Hub repository, org/name"):
        check_push(repo)


def test_a_push_needs_a_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match="no Hub token; run `hf auth login` or set HF_TOKEN"):
        check_push("org/name")


def test_a_hub_that_cannot_be_reached_keeps_the_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"--push org/name: .*the checkpoint stays in"):
        push(tmp_path, "org/name")
    assert (tmp_path / "config.json").exists()


def test_a_finished_checkpoint_is_uploaded_as_it_is(olmoe_pair, tmp_path):
    out = tmp_path / "out"
    pair = ("--host", str(olmoe_pair[0]), "--donor", str(olmoe_pair[1]))
    asked = ("--components", "router", "--out", str(out), "--push", "org/name")
    command = [sys.executable, "-m", "moegraft", "transfer", *pair, *asked]
    with small_hub("hf_right") as hub:
        env = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_right",
        }
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/org/name/commit/" in done.stdout + done.stderr
        assert hub.files == {file.name: file.read_bytes() for file in out.iterdir()}
        assert hub.requests[0] == "POST /api/repos/create"
        assert hub.requests[-1] == "POST /api/models/org/name/commit/main"
        assert sum(request.startswith("PUT /blobs/") for request in hub.requests) == 1
        command[command.index(str(out))] = str(tmp_path / "other")
        wrong = subprocess.run(
            command, capture_output=True, text=True, check=False, env=env | {"HF_TOKEN": "hf_old"}
        )
    assert wrong.returncode == 2
    (error,) = (line for line in wrong.stderr.splitlines() if line.startswith("error: "))
    assert "--push org/name: " in error and f"stays in {tmp_path / 'other'}" in error
    assert (tmp_path / "other" / "model.safetensors").exists()
