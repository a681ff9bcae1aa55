import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError, OutputError, RecipeError
from moegraft.transfer import Plan, apply_plan
from moegraft.transfer import apply as apply_module
from tiny_families import tiny_model


def nothing_at(out):
    return [path.name for path in out.parent.iterdir() if out.name in path.name] == []


def test_stock_transformers_loads_the_output_without_a_missing_key(plan, tmp_path):
    out = apply_plan(plan("router", "experts[1,5]", layers="1"), tmp_path / "out")
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())


def test_shards_and_layout_are_the_hosts(plan, tmp_path):
    tiny_model("olmoe").save_pretrained(tmp_path / "host", max_shard_size="20KB")
    tiny_model("olmoe").save_pretrained(tmp_path / "donor")
    made = plan("experts", host=tmp_path / "host", donor=tmp_path / "donor")
    out = open_checkpoint(apply_plan(made, tmp_path / "out"))
    by_shard = {n: t.file.name for n, t in made.host.tensors.items()}
    assert {n: t.file.name for n, t in out.tensors.items()} == by_shard
    assert len(out.files) > 2
    assert out.layout == "published"


def test_side_files_are_the_hosts_but_for_cards_code_and_pickles(plan, vary, olmoe_pair, tmp_path):
    files = {
        "tokenizer.json": "{}",
        "generation_config.json": '{"top_k": 1}',
        "chat_template.jinja": "x",
        "LICENSE": "text",
        "README.md": "old",
        "modeling.py": "raise SystemExit",
        "pytorch_model.bin": "pickle",
        "training_args.bin": "pickle",
        "provenance.json": "{}",
    }
    host = vary("host", source=olmoe_pair[0], files=files)
    made = plan("router", host=host)
    out = apply_plan(made, tmp_path / "out")
    held = {path.name for path in out.iterdir()}
    kept = {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"}
    assert held == kept | {"LICENSE", "README.md", "provenance.json", "model.safetensors"}
    assert (out / "config.json").read_bytes() == (host / "config.json").read_bytes()
    record = json.loads((out / "provenance.json").read_text())
    left = {"README.md", "modeling.py", "pytorch_model.bin", "training_args.bin"}
    assert set(record["host_files_left_out"]) == left | {"provenance.json"}


def test_verify_records_content_hashes_of_sources_and_output(plan, tmp_path):
    out = apply_plan(plan("router"), tmp_path / "out", verify=True)
    record = json.loads((out / "provenance.json").read_text())
    hashes = [record["sources"][n]["content_sha256"] for n in ("host", "d")]
    hashes.append(record["output"]["content_sha256"])
    digests = [found["model.safetensors"] for found in hashes]
    assert len(set(digests)) == 3
    assert digests[2] == apply_module.hash_file(out / "model.safetensors")


def test_verify_notices_a_source_that_changed_meanwhile(plan, vary, olmoe_pair, tmp_path):
    donor = vary("donor")
    made = plan("experts", donor=donor)
    tensor = made.donors["d"].tensors["model.layers.0.mlp.experts.0.up_proj.weight"]
    changed = []

    def change(_: int) -> None:
        if not changed:
            changed.append(True)
            with tensor.file.open("r+b") as stream:
                stream.seek(tensor.start)
                stream.write(b"\x01\x02\x03\x04")

    with pytest.raises(OutputError, match="the written bytes differ from"):
        # the first step is the host's; a large copy would be caught the same way
        apply_plan(made, tmp_path / "out", verify=True, on_bytes=_last(change, made.nbytes))
    assert nothing_at(tmp_path / "out")


def _last(call, total):
    done = [0]

    def on_bytes(count: int) -> None:
        done[0] += count
        if done[0] == total:
            call(count)

    return on_bytes


def test_progress_counts_every_byte(plan, tmp_path):
    made, counts = plan("router", rule="linear", weight=0.5), []
    apply_plan(made, tmp_path / "out", on_bytes=counts.append)
    assert sum(counts) == made.nbytes


@pytest.mark.parametrize("which", [0, 1])
def test_an_output_that_is_an_input_is_refused(plan, olmoe_pair, which):
    before = (olmoe_pair[which] / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="the output is the input"):
        apply_plan(plan("router"), olmoe_pair[which])
    with pytest.raises(OutputError, match="the output lies inside the input"):
        apply_plan(plan("router"), olmoe_pair[which] / "inside")
    assert (olmoe_pair[which] / "model.safetensors").read_bytes() == before


def test_an_output_that_is_not_empty_is_refused_and_untouched(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists and is not empty"):
        apply_plan(plan("router"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_too_little_disk_is_seen_before_writing(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match=r"0\.000 GB are free; nothing written"):
        apply_plan(plan("router"), tmp_path / "out")
    assert nothing_at(tmp_path / "out")


def test_a_disk_that_fills_up_leaves_nothing(plan, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(apply_module.shutil, "copyfile", full)
    with pytest.raises(OutputError, match=r"the disk is full .*nothing was left behind"):
        apply_plan(plan("router"), tmp_path / "out")
    assert nothing_at(tmp_path / "out")


def test_a_source_that_shrinks_after_planning_leaves_nothing(plan, vary, tmp_path):
    donor = vary("donor")
    made = plan("all", donor=donor)
    os.truncate(donor / "model.safetensors", made.host.num_bytes // 2)
    with pytest.raises(CheckpointError, match="ends early; was it rewritten meanwhile"):
        apply_plan(made, tmp_path / "out")
    assert nothing_at(tmp_path / "out")


def test_ctrl_c_leaves_nothing(plan, tmp_path):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_plan(plan("router"), tmp_path / "out", on_bytes=interrupt)
    assert nothing_at(tmp_path / "out")


_SLOW = """
import sys, time
from moegraft.checkpoint import open_checkpoint
from moegraft.transfer import apply_plan, component_recipe, plan_transfer
host, donor, out = sys.argv[1:]
plan = plan_transfer(
    component_recipe(host, donor, "router"),
    open_checkpoint(host),
    {"donor": open_checkpoint(donor)},
)
def wait(_):
    print("writing", flush=True)
    time.sleep(60)
apply_plan(plan, out, on_bytes=wait if sys.stdin.readline() == "slow\\n" else None)
"""


def test_kill_9_leaves_no_output_and_the_next_run_cleans_up(olmoe_pair, tmp_path):
    command = [sys.executable, "-c", _SLOW, *map(str, olmoe_pair), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("slow\n")
        process.stdin.flush()
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    (partial,) = tmp_path.iterdir()
    assert not (partial / "config.json").exists()
    subprocess.run(command, input="\n", text=True, check=True, timeout=120)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_differing_licences_stop_before_anything_is_written(plan, vary, olmoe_pair, tmp_path):
    host = vary("h", source=olmoe_pair[0], files={"README.md": "---\nlicense: mit\n---\n"})
    donor = vary("d", files={"README.md": "---\nlicense: apache-2.0\n---\n"})
    says = "licences differ .host: mit, d: apache-2.0.; say which .*--licence"
    with pytest.raises(RecipeError, match=says):
        apply_plan(plan("router", host=host, donor=donor), tmp_path / "out")
    assert nothing_at(tmp_path / "out")


def test_a_plan_with_nothing_to_move_is_a_copy(plan, olmoe_pair, tmp_path):
    made = plan("router")
    empty = Plan(made.recipe, made.host, made.donors, {}, ())
    out = apply_plan(empty, tmp_path / "out")
    assert open_checkpoint(out).content_hashes() == made.host.content_hashes()
