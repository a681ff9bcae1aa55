import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.bar.average import by_component
from moegraft.bar.branch import BranchRecipe, plan_branch, write_branch
from moegraft.bar.manifest import read_manifest, write_manifest
from moegraft.bar.merge import MergeRecipe, plan_merge, write_merge
from moegraft.bar.record import read_record
from moegraft.bar.twin import TWINS
from moegraft.config import parse_recipe
from moegraft.errors import BranchError, OutputError, RecipeError
from tiny_bar import train_branch, word_tokenizer
from tiny_families import build_tiny, stored_tensors

EMBEDDING, HEAD, QUERY = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
)


def make_branches(anchor, pretrained, root, domains=("math", "code"), **changes):
    """Branches with experts of their own; `changes` names shared tensors a domain moves."""
    for seed, domain in enumerate(domains):
        recipe = BranchRecipe(str(anchor), domain, pretrained=str(pretrained), seed=seed)
        write_branch(plan_branch(recipe), root / f"{domain}-start")
        moved = changes.get(domain, ())
        train_branch(root / f"{domain}-start", root / domain, seed=seed, shared=moved)
    return [root / domain for domain in domains]


def merge(anchor, branches, out, **recipe):
    plan = plan_merge(MergeRecipe(str(anchor), tuple(map(str, branches)), **recipe))
    return plan, write_merge(plan, out)


@pytest.fixture(scope="module")
def two(dense_pairs, tmp_path_factory):
    """An olmo2 anchor and two branches; `code` moved its head and one query."""
    root = tmp_path_factory.mktemp("two")
    anchor, pretrained = dense_pairs("olmo2")
    moved = {"code": (HEAD, QUERY)}
    return anchor, make_branches(anchor, pretrained, root, **moved)


@pytest.mark.parametrize("model_type", TWINS)
def test_experts_and_router_rows_are_the_branches_own(model_type, dense_pairs, tmp_path):
    anchor, pretrained = dense_pairs(model_type)
    branches = make_branches(anchor, pretrained, tmp_path)
    merge(anchor, branches, tmp_path / "merged")
    merged = stored_tensors(tmp_path / "merged")
    first, *others = [stored_tensors(branch) for branch in branches]
    for place, branch in enumerate((first, *others), 1):
        for name, tensor in branch.items():
            if ".experts.0." in name:
                assert torch.equal(merged[name], tensor)
            elif ".experts.1." in name:
                own = name.replace(".experts.1.", f".experts.{place}.")
                assert torch.equal(merged[own], tensor)
            elif ".gate.weight" in name and ".experts." not in name:
                assert merged[name].shape == (3, 16)
                assert torch.equal(merged[name][place], tensor[1])
                mean = (first[name][0] + others[0][name][0]) / 2
                assert torch.equal(merged[name][0], mean)
            else:
                assert torch.equal(merged[name], tensor)


@pytest.mark.parametrize("model_type", TWINS)
def test_stock_transformers_generates_with_the_merged_model(model_type, dense_pairs, tmp_path):
    anchor, pretrained = dense_pairs(model_type)
    branches = make_branches(anchor, pretrained, tmp_path)
    merge(anchor, branches, tmp_path / "merged")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.num_experts_per_tok == 3
    ids = torch.arange(3, 13)[None]
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > 10


def test_shared_tensors_are_the_mean_with_the_anchor(two, tmp_path):
    anchor, branches = two
    plan, record = merge(anchor, branches, tmp_path / "merged")
    own, code = stored_tensors(anchor), stored_tensors(branches[1])
    merged = stored_tensors(tmp_path / "merged")
    for name in (HEAD, QUERY):
        assert torch.allclose(merged[name], (2 * own[name] + code[name]) / 3, atol=1e-6)
        assert not torch.equal(merged[name], own[name])
    assert torch.equal(merged[EMBEDDING], own[EMBEDDING])
    moved = by_component(plan.shared.moved)
    assert moved["embedding"] == {"math": 0.0, "code": 0.0}
    assert moved["lm_head"]["math"] == 0 < moved["lm_head"]["code"]
    far = float((code[HEAD] - own[HEAD]).norm() / own[HEAD].norm())
    assert moved["lm_head"]["code"] == pytest.approx(far, rel=1e-6)
    written = json.loads((tmp_path / "merged" / "divergence.json").read_text())
    assert written["components"] == moved
    assert read_record(tmp_path / "merged") == record
    assert record.domains == ("math", "code")
    assert record.experts[1]["stages"] == [{"stage": "sft", "tokens": 10}]


def test_other_policies_decide_by_component(two, tmp_path):
    anchor, branches = two
    own, code = stored_tensors(anchor), stored_tensors(branches[1])
    merge(anchor, branches, tmp_path / "m", shared="anchor", shared_by={"lm_head": "changed"})
    merged = stored_tensors(tmp_path / "m")
    assert torch.equal(merged[HEAD], code[HEAD])
    assert torch.equal(merged[QUERY], own[QUERY])
    with pytest.raises(BranchError, match=r"'code' differs from the anchor by [\d.]+ of its norm"):
        merge(anchor, branches, tmp_path / "equal", shared="equal")
    assert not (tmp_path / "equal").exists()
    merge(anchor, branches[:1], tmp_path / "one", shared="equal")


def test_the_sum_of_changes_is_added_to_the_anchor(two, tmp_path):
    anchor, branches = two
    own, code = stored_tensors(anchor), stored_tensors(branches[1])
    merge(anchor, branches, tmp_path / "half", shared="sum:0.5")
    merge(anchor, branches, tmp_path / "mean")
    merge(anchor, branches, tmp_path / "third", shared_by={"lm_head": f"sum:{1 / 3}"})
    half, mean, third = (stored_tensors(tmp_path / n) for n in ("half", "mean", "third"))
    for name in (HEAD, QUERY):
        assert torch.allclose(half[name], (own[name] + code[name]) / 2, atol=1e-6)
    assert torch.equal(half[EMBEDDING], own[EMBEDDING])
    assert torch.allclose(third[HEAD], mean[HEAD], atol=1e-6)
    assert torch.equal(third[QUERY], mean[QUERY])
    assert read_record(tmp_path / "half").shared == {"default": "sum:0.5"}


def test_fused_and_half_precision_branches_merge_like_their_published_twins(two, tmp_path):
    anchor, branches = two
    fused = AutoModelForCausalLM.from_pretrained(branches[0])
    fused.save_pretrained(tmp_path / "fused", save_original_format=False)
    write_manifest(tmp_path / "fused", read_manifest(branches[0]))
    merge(anchor, branches, tmp_path / "a")
    merge(anchor, [tmp_path / "fused", branches[1]], tmp_path / "b")
    plain, other = stored_tensors(tmp_path / "a"), stored_tensors(tmp_path / "b")
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_branches_of_another_anchor_are_refused(two, dense_pairs, tmp_path):
    anchor, branches = two
    with pytest.raises(BranchError, match=r"grew from another anchor, anchor \(.*expected pretr"):
        merge(dense_pairs("olmo2")[1], branches, tmp_path / "m")
    with pytest.raises(BranchError, match="both branches for 'math'; expected one per domain"):
        merge(anchor, [branches[0], branches[0].parent / "math-start"], tmp_path / "m")
    with pytest.raises(BranchError, match=r"has no branch\.json"):
        merge(anchor, [anchor], tmp_path / "m")


def test_a_frozen_tensor_that_moved_is_named_and_as_released_averages_it(two, tmp_path):
    anchor, branches = two
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    train_branch(branches[0], tmp_path / "loose", seed=5, shared=(name,))
    with pytest.raises(BranchError, match=r"loose: model\.layers\.1\.mlp\.experts\.0\.up_proj"):
        merge(anchor, [tmp_path / "loose", branches[1]], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    merge(anchor, [tmp_path / "loose", branches[1]], tmp_path / "m", as_released=True)
    moved, own = (stored_tensors(path)[name] for path in (tmp_path / "loose", branches[1]))
    merged = stored_tensors(tmp_path / "m")[name]
    assert torch.allclose(merged, (moved + 2 * own) / 3, atol=1e-6)


def test_a_branch_that_computes_otherwise_is_refused(two, tmp_path):
    anchor, branches = two
    train_branch(branches[0], tmp_path / "b", seed=1)
    file = tmp_path / "b" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["rope_theta"] = 500000.0
    file.write_text(json.dumps(config))
    with pytest.raises(BranchError, match=r"has rope .*500000.*, the anchor .*10000"):
        merge(anchor, [tmp_path / "b"], tmp_path / "m")


def test_an_untrained_branch_is_told(two, tmp_path):
    anchor, branches = two
    plan, _ = merge(anchor, [branches[0].parent / "math-start"], tmp_path / "m")
    assert "has not moved since the branch was made" in plan.warnings[0]
    start = branches[0].parent / "math-start"
    train_branch(start, tmp_path / "b", seed=1, stages=())
    plan, _ = merge(anchor, [tmp_path / "b"], tmp_path / "n")
    assert "records no stage: its expert was trained by something else" in plan.warnings[0]


def test_new_tokens_are_united_by_name(word_anchor, tmp_path):
    for domain, tokens in (("tool", ("<call>", "<end>")), ("code", ("<end>", "<run>"))):
        recipe = BranchRecipe(str(word_anchor), domain, new_tokens=tokens)
        write_branch(plan_branch(recipe), tmp_path / f"{domain}-start")
        train_branch(tmp_path / f"{domain}-start", tmp_path / domain, shared=(EMBEDDING, HEAD))
    branches = [tmp_path / "tool", tmp_path / "code"]
    _, record = merge(word_anchor, branches, tmp_path / "m")
    assert record.tokens == {"<call>": 40, "<end>": 41, "<run>": 42}
    own, tool, code = (stored_tensors(path) for path in (word_anchor, *branches))
    merged = stored_tensors(tmp_path / "m")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(merged[name][40], tool[name][40])
        assert torch.equal(merged[name][42], code[name][41])
        mean = (tool[name][41] + code[name][40]) / 2
        assert torch.allclose(merged[name][41], mean, atol=1e-6)
        assert torch.equal(merged[name][43:], own[name][43:])
        old = (own[name][:40] + tool[name][:40] + code[name][:40]) / 3
        assert torch.allclose(merged[name][:40], old, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("w1 <run> <call>")["input_ids"] == [1, 42, 40]


def test_a_branch_with_another_vocabulary_is_refused(word_anchor, tmp_path):
    recipe = BranchRecipe(str(word_anchor), "tool")
    write_branch(plan_branch(recipe), tmp_path / "tool")
    file = tmp_path / "tool" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"x7"'))
    with pytest.raises(BranchError, match="tokenizer has 'x7' at id 7, expected 'w7'"):
        merge(word_anchor, [tmp_path / "tool"], tmp_path / "m")
    manifest = read_manifest(tmp_path / "tool")
    write_manifest(tmp_path / "tool", replace(manifest, tokens={"<call>": 70}))
    with pytest.raises(BranchError, match="its vocabulary has 64 rows, expected 71: the anchor's"):
        merge(word_anchor, [tmp_path / "tool"], tmp_path / "m")


def test_dense_weights_are_averaged(dense_pairs, tmp_path):
    anchor, other = dense_pairs("llama")
    merge(anchor, [f"math={other}"], tmp_path / "m", method="average")
    own, given, merged = (stored_tensors(path) for path in (anchor, other, tmp_path / "m"))
    assert merged.keys() == own.keys()
    for name, tensor in merged.items():
        assert torch.allclose(tensor, (own[name] + given[name]) / 2, atol=1e-6), name
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info


def test_btx_averages_attention_and_as_released_takes_the_first_models(dense_pairs, tmp_path):
    anchor, other = dense_pairs("olmo2")
    build_tiny("olmo2", seed=9).save_pretrained(tmp_path / "tool")
    dense = [str(tmp_path / "tool"), f"math={other}"]
    own, math, tool = (stored_tensors(path) for path in (anchor, other, tmp_path / "tool"))
    for method in ("btx", "btx-released"):
        plan, record = merge(anchor, dense, tmp_path / method, method=method)
        assert record.domains == ("tool", "math")
        assert all(row["moved"]["math"] > 0 for row in plan.shared.moved if row["tensor"] == QUERY)
        assert QUERY in {row["tensor"] for row in plan.shared.moved}
        merged = stored_tensors(tmp_path / method)
        up = "model.layers.1.mlp.experts.{}.up_proj.weight".format
        for expert, source in enumerate((own, tool, math)):
            assert torch.equal(merged[up(expert)], source["model.layers.1.mlp.up_proj.weight"])
        assert 0 < float(merged["model.layers.0.mlp.gate.weight"].abs().max()) <= 0.06
        mean = (own[QUERY] + tool[QUERY] + math[QUERY]) / 3
        assert torch.equal(merged[QUERY], tool[QUERY]) == (method == "btx-released")
        assert torch.allclose(merged[QUERY], mean, atol=1e-6) == (method == "btx")
    with pytest.raises(BranchError, match=r"is a llama, the anchor a olmo2; this method merges"):
        merge(anchor, [str(dense_pairs("llama")[0])], tmp_path / "m", method="btx")
    build_tiny("olmo2", intermediate_size=12).save_pretrained(tmp_path / "narrow")
    with pytest.raises(BranchError, match=r"has shape \[16, 12\], the anchor's \[16, 24\]"):
        merge(anchor, [str(tmp_path / "narrow")], tmp_path / "m", method="average")


def dense_with_tokens(folder, *tokens, seed):
    """A dense model of the word anchor's kind whose tokenizer has new tokens behind the words."""
    build_tiny("olmo2", seed=seed).save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([*tokens])
    tokenizer.save_pretrained(folder)
    return stored_tensors(folder)


@pytest.mark.parametrize("method", ["average", "btx", "btx-released"])
def test_new_tokens_of_dense_models_are_united_by_name(method, word_anchor, tmp_path):
    tool = dense_with_tokens(tmp_path / "tool", "<call>", "<end>", seed=5)
    code = dense_with_tokens(tmp_path / "code", "<end>", "<run>", seed=6)
    given = [tmp_path / "tool", tmp_path / "code"]
    _, record = merge(word_anchor, given, tmp_path / "m", method=method)
    assert record.tokens == {"<call>": 40, "<end>": 41, "<run>": 42}
    own, merged = stored_tensors(word_anchor), stored_tensors(tmp_path / "m")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(merged[name][40], tool[name][40])
        assert torch.equal(merged[name][42], code[name][41])
        mean = (tool[name][41] + code[name][40]) / 2
        assert torch.allclose(merged[name][41], mean, atol=1e-6)
        old = (own[name][:40] + tool[name][:40] + code[name][:40]) / 3
        assert torch.allclose(merged[name][:40], old, atol=1e-6) == (method != "btx-released")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("w1 <run> <call>")["input_ids"] == [1, 42, 40]


def test_dense_models_of_another_vocabulary_are_refused(word_anchor, tmp_path):
    dense_with_tokens(tmp_path / "d", *(f"<{n}>" for n in range(25)), seed=5)
    with pytest.raises(BranchError, match="has 64 rows, too few for token 64 of its tokenizer"):
        merge(word_anchor, [tmp_path / "d"], tmp_path / "m", method="average")
    file = tmp_path / "d" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"x7"'))
    with pytest.raises(BranchError, match="has 'x7' at id 7, the anchor's 'w7'; expected the anch"):
        merge(word_anchor, [tmp_path / "d"], tmp_path / "m", method="btx")


def test_a_recipe_that_contradicts_itself_is_refused():
    base = {"anchor": "a", "branches": ["b"]}
    for change, message in (
        ({"shared_by": {"heads": "mean"}}, "shared_by: unknown component 'heads'"),
        ({"shared_by": {"lm_head": "sum:-1"}}, "lm_head: unknown policy 'sum:-1'; expected o"),
        ({"branches": []}, "branches: expected at least one"),
        ({"as_released": True, "method": "btx"}, "as_released goes with method bar only"),
        ({"shared": "ties"}, "shared: unknown policy 'ties'; expected one of mean, changed"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(base | change, MergeRecipe, where="merge")


def test_more_active_experts_than_there_are_are_refused(two, tmp_path):
    anchor, branches = two
    with pytest.raises(BranchError, match="top_k: expected 1 to 3, the number of experts, got 4"):
        merge(anchor, branches, tmp_path / "m", top_k=4)
    merge(anchor, branches, tmp_path / "m", top_k=2)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"]) == (3, 2)


def test_a_model_that_stands_twice_is_refused(two, dense_pairs, tmp_path):
    anchor, branches = two
    with pytest.raises(BranchError, match="are both branches for 'math'; expected one per domain"):
        merge(anchor, [branches[0], branches[0]], tmp_path / "m")
    own, other = dense_pairs("llama")
    for name in ("math", "anchor"):
        with pytest.raises(BranchError, match=f"another model is called '{name}'; name each NAME="):
            merge(own, [f"math={other}", f"{name}={own}"], tmp_path / "m", method="btx")


def test_values_that_are_no_numbers_are_not_averaged(two, tmp_path):
    anchor, branches = two
    train_branch(branches[0], tmp_path / "bad")
    tensors = stored_tensors(tmp_path / "bad")
    tensors[HEAD][3, 2] = torch.nan
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BranchError, match=f"{HEAD}: 'math' or the anchor holds values that are n"):
        merge(anchor, [tmp_path / "bad"], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_merge_never_writes_into_a_branch(two):
    anchor, branches = two
    with pytest.raises(OutputError, match="is the input"):
        merge(anchor, branches, branches[0])
