import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moegraft.checkpoint import open_checkpoint
from moegraft.errors import CheckpointError
from moegraft.transfer import compare_checkpoints
from tiny_families import tiny_model


def compare(host, donor):
    return compare_checkpoints(open_checkpoint(str(host)), open_checkpoint(str(donor)))


def flat(folder, part):
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate(
        [tensors[n].double().numpy().ravel() for n in sorted(tensors) if part in n]
    )


def test_distances_are_those_of_the_flattened_components(olmoe_pair):
    found = compare(*olmoe_pair)
    rows = {(row.component, row.layer): row for row in found.distances}
    a, b = (flat(p, "layers.1.mlp.experts") for p in olmoe_pair)
    row = rows["experts", 1]
    assert math.isclose(row.relative, np.linalg.norm(a - b) / np.linalg.norm(a), rel_tol=1e-6)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert math.isclose(row.cosine, cosine, abs_tol=1e-6)  # sums in float32 within a chunk
    assert (row.num_pieces, row.num_identical, row.num_not_comparable) == (24, 0, 0)
    totals = {row.component: row for row in found.totals}
    a, b = (flat(p, "mlp.experts") for p in olmoe_pair)
    total = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert math.isclose(totals["experts"].relative, total, rel_tol=1e-6)
    assert sum(r.num_pieces for r in found.totals) == 69


def test_small_angles_survive_bf16_and_float32_sums(make_olmoe, vary, tmp_path):
    host = make_olmoe(tmp_path / "host", dtype="bfloat16")
    donor = vary(source=host, tensors=lambda t: {n: x * 1.0078125 for n, x in t.items()})
    for row in compare(host, donor).totals:
        assert 1 - row.cosine < 2e-5, row  # bf16 rounds the product
        assert 0.004 < row.relative < 0.012, row


def test_a_checkpoint_is_no_distance_from_itself(olmoe_pair):
    found = compare(olmoe_pair[0], olmoe_pair[0])
    assert found.transferable
    assert found.configs == found.tokenizers == found.only_host == found.only_donor == ()
    for row in found.distances:
        assert row.relative == 0
        assert row.cosine == 1
        assert row.num_identical == row.num_pieces


def test_numbers_that_are_not_finite_are_no_distance(olmoe_pair, vary):
    def spoil(tensors):
        name = "model.layers.0.mlp.gate.weight"
        return tensors | {name: torch.full_like(tensors[name], math.nan)}

    rows = {
        (r.component, r.layer): r for r in compare(olmoe_pair[0], vary(tensors=spoil)).distances
    }
    assert rows["router", 0].relative is None
    assert rows["router", 0].cosine is None
    assert rows["router", 1].relative is not None


def test_quantised_tensors_are_compared_by_their_bytes(vary, olmoe_pair):
    def narrow(tensors):
        return {
            n: t.to(torch.float8_e4m3fn) if "mlp.experts" in n else t for n, t in tensors.items()
        }

    host = vary("host", source=olmoe_pair[0], tensors=narrow)
    same = vary("same", source=olmoe_pair[0], tensors=narrow)
    totals = {row.component: row for row in compare(host, same).totals}
    assert totals["experts"].relative is None
    assert (totals["experts"].num_identical, totals["experts"].num_not_comparable) == (48, 48)
    assert totals["router"].relative == 0


def test_layouts_may_differ(tmp_path):
    from safetensors.torch import save_file

    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "published")
    model.config.save_pretrained(tmp_path / "fused")
    tensors = {n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, tmp_path / "fused/model.safetensors", {"format": "pt"})
    found = compare(tmp_path / "published", tmp_path / "fused")
    assert found.layouts == ("published", "fused")
    assert all(row.num_identical == row.num_pieces for row in found.totals)


def test_other_families_and_sizes_are_told_apart(olmoe_pair, make_olmoe, tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path / "mixtral")
    found = compare(olmoe_pair[0], tmp_path / "mixtral")
    assert not found.transferable
    assert found.distances == ()
    wide = make_olmoe(tmp_path / "wide", hidden_size=64)
    found = compare(olmoe_pair[0], wide)
    assert not found.transferable
    assert {"hidden_size", "head_dim"} >= {row["field"] for row in found.configs}


TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}},
    "added_tokens": [{"id": 3, "content": "<end>"}],
}


def tokenizer(vary, name, content, **config):
    files = {"tokenizer.json": json.dumps(content), "tokenizer_config.json": json.dumps(config)}
    return vary(name, files=files)


def test_tokenizers_are_compared_by_ids_special_tokens_and_template(vary):
    host = tokenizer(vary, "h", TOKENIZER, eos_token="<end>", chat_template="x")
    changed = TOKENIZER | {
        "added_tokens": [{"id": 3, "content": "|IP|"}, {"id": 4, "content": "z"}]
    }
    donor = tokenizer(vary, "d", changed, eos_token={"content": "z"})
    assert compare(host, donor).tokenizers == (
        "1 ids name different tokens (3: '<end>' and '|IP|')",
        "1 ids are only the donor's, the first is 4",
        "eos_token: host '<end>', donor 'z'",
        "the donor has no chat template",
    )
    assert compare(host, host).tokenizers == ()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"vocab": 3}}'])
def test_a_broken_tokenizer_is_one_clear_line(vary, olmoe_pair, text):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        compare(olmoe_pair[0], vary(files={"tokenizer.json": text}))
