"""For every family of the catalogue: a document in a block is as it is alone."""

import pytest
import torch

from moegraft.errors import RecipeError
from moegraft.train.apart import keeps_apart, packed_logits
from moegraft.train.lm import token_loss, train_lm
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss
from moegraft.train.text import Blocks, pack_ids
from tiny_families import TINY, build_tiny

RUN_BY_ITSELF = {"gpt_oss", "jamba", "qwen3_5_moe_text"}
"""Families that position ids do not suffice for, in transformers 5.23."""
LENGTHS = (3, 9, 1, 7, 4, 8)


def documents():
    source = torch.Generator().manual_seed(0)
    return [torch.randint(3, 64, (size,), generator=source).tolist() for size in LENGTHS]


@pytest.mark.parametrize("family", TINY)
def test_a_document_in_a_block_is_as_it_is_alone(family):
    model = build_tiny(family).train()
    apart = keeps_apart(model)
    assert apart is (family not in RUN_BY_ITSELF)
    assert model.training
    model.eval()
    blocks = pack_ids(documents(), 16)
    with torch.no_grad():
        packed = packed_logits(model, blocks.ids.long(), blocks.positions.long(), apart=apart)
        starts = (blocks.positions == 0).nonzero().tolist()
        assert len(starts) == 7  # one document is cut
        for row, first in starts:
            ends = [start for r, start in starts if r == row and start > first]
            last = min(ends, default=16)
            alone = model(input_ids=blocks.ids[row : row + 1, first:last].long()).logits[0]
            torch.testing.assert_close(packed[row, first:last], alone, atol=2e-5, rtol=1e-4)
        loss, count = token_loss(model, blocks, range(2), apart=apart)
    assert count == 32 - 7
    assert torch.isfinite(loss)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("router", [RouterLoss(), RouterLoss(z=0.1)])
def test_training_documents_one_by_one_is_training_them_packed(router, tmp_path):
    """Two documents a block, or one."""
    docs = [ids * 8 for ids in ([3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14], [15, 16, 17, 18])]
    layouts = {"packed": pack_ids(docs, 64), "single": pack_ids(docs, 32)}
    found = {}
    for batch, (name, blocks) in zip((2, 4), layouts.items(), strict=True):
        model = build_tiny("jamba")
        options = TrainOptions(2, batch, 0.01, warmup_steps=0, use_cpu=True)
        train_lm(model, blocks, options, work=tmp_path / name, router=router)
        found[name] = model.state_dict()
    for name, tensor in found["packed"].items():
        torch.testing.assert_close(tensor, found["single"][name], atol=1e-5, rtol=1e-4)


def test_places_that_do_not_count_are_not_run():
    model = build_tiny("jamba")
    seen = []
    blocks = pack_ids(documents(), 16)
    counted = torch.zeros(2, 16, dtype=torch.bool)
    counted[0, 5] = True  # in the second document, of nine tokens
    packed_logits(
        model,
        blocks.ids.long(),
        blocks.positions.long(),
        apart=False,
        counted=counted,
        after=lambda real: seen.append(int(real.sum())),
    )
    assert seen == [9]
    nothing = torch.zeros_like(counted)
    out = packed_logits(model, blocks.ids, blocks.positions, apart=False, counted=nothing)
    assert out.shape == (2, 16, 64)


def test_several_processes_are_refused_where_documents_run_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 2)
    blocks = Blocks(*(torch.zeros(2, 8, dtype=torch.int32) for _ in range(2)))
    options = TrainOptions(1, 2, 0.01, use_cpu=True)
    with pytest.raises(RecipeError, match="JambaForCausalLM mixes the documents of a block"):
        train_lm(build_tiny("jamba"), blocks, options, work=tmp_path)
