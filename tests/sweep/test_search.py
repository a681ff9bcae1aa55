import json
import shutil
from dataclasses import replace

import pytest
import torch

from moegraft.config import load_recipe
from moegraft.errors import EvalDataError, RecipeError
from moegraft.evals import load_condition
from moegraft.evals.execution import Execution
from moegraft.sweep.search import guided_search, random_search
from moegraft.sweep.search_run import Confirmed, SearchRecipe, open_arena, run_search
from moegraft.transfer.recipe import TransferRecipe

LETTERS = "abcdefgh"
TASK = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: {choices}
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A host damaged in its experts of layer 1, a donor in its attention of layer 2, and a task.

    Right answers are what the undamaged model says, so the donor's experts in the host are best.
    """
    from transformers import AutoModelForCausalLM

    from tiny_sweep import byte_tokenizer

    root = tmp_path_factory.mktemp("planted")
    good = _model()
    byte_tokenizer().save_pretrained(root / "good")
    good.save_pretrained(root / "good")
    _write_task(root, [0] * 320)
    items = _items(root)
    _write_task(root, _answers(good, items))
    for name, part in (("host", "layers.1.mlp.experts"), ("donor", "layers.2.self_attn")):
        shutil.copytree(root / "good", root / name)
        model = AutoModelForCausalLM.from_pretrained(root / name)
        source = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                noise = torch.randn(tensor.shape, generator=source)
                if part in key:
                    tensor.copy_(tensor.std() * noise)
                elif name == "donor" and "norm" not in key:
                    tensor.add_(1e-3 * noise)
        model.save_pretrained(root / name)
    return root


def _model():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return OlmoeForCausalLM(config).eval()


def _write_task(root, targets):
    data = root / "letters.jsonl"
    docs = [{"text": f"{k * 7919 % 1009} {k}", "target": int(t)} for k, t in enumerate(targets)]
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (root / "letters.yaml").write_text(TASK.format(data=data, choices=json.dumps([*LETTERS])))


def _items(root):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "good")
    found = load_condition("letters", tokenizer=tokenizer, include=(root,), chat_template=False)
    return found.items


@torch.no_grad()
def _answers(model, items):
    """The letter that the model finds most probable, in the order of the documents."""
    answers = {}
    for item in items:
        scores = model(torch.tensor([item.prompt_ids])).logits[0, -1]
        ids = [pair.continuation[-1] for pair in item.pairs]
        answers[item.doc["text"]] = int(scores[ids].argmax())
    docs = sorted(items, key=lambda item: int(item.doc["text"].split()[1]))
    return [answers[item.doc["text"]] for item in docs]


def recipe_of_test(root, **options) -> SearchRecipe:
    sizes = {"budget": 1200, "groups": 4, "confirm_items": 120} | options
    return SearchRecipe(str(root / "host"), str(root / "donor"), "letters", chat_template=False,
                        **sizes)  # fmt: skip


@pytest.fixture(scope="module")
def searched(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "search"
    steps = []
    how = Execution(device="cpu", include=(planted,), command="moegraft select --search")
    content = run_search(recipe_of_test(planted), out, how, on_step=steps.append)
    return out, content, steps


def test_the_planted_parts_are_found_and_confirmed_on_other_items(searched):
    _, content, _ = searched
    choice = content["choice"]
    assert "experts 1" in choice["configuration"] or "experts 0-" in choice["configuration"]
    assert choice["exceeds"]
    assert choice["recommended"] == choice["configuration"]
    assert choice["score"] > 0.95
    finalists = content["finalists"]
    assert finalists[0]["composition"] == choice["configuration"]
    assert [one["score"] for one in finalists] == sorted(
        (one["score"] for one in finalists), reverse=True
    )
    assert choice["num_confirming"] == 120
    assert "attention 2" not in choice["configuration"]
    worst = min(content["units"], key=lambda unit: unit["attribution"])
    assert worst["unit"] == "attention 2"
    assert not any(unit["unit"].startswith("rest") for unit in content["units"])  # equal norms


def test_the_budget_holds_and_the_files_are_what_transfer_reads(searched):
    out, content, steps = searched
    assert content["spent"] <= 1200
    assert [step.done for step in steps if step.stage == "search"] == sorted(
        step.done for step in steps if step.stage == "search"
    )
    assert json.loads((out / "search.json").read_text()) == content
    made = load_recipe(out / "recipe.yaml", TransferRecipe)
    assert made.selections
    assert "exceeds both parents" in (out / "recipe.yaml").read_text()


def test_what_the_held_out_items_cannot_tell_from_a_parent_is_not_recommended(planted, tmp_path):
    out, how = tmp_path / "found", Execution(device="cpu", include=(planted,))
    recipe = recipe_of_test(planted, budget=700, confirm_items=5)  # p .06 at least
    choice = run_search(recipe, out, how)["choice"]
    assert not choice["exceeds"]
    assert choice["recommended"] == choice["parent"] != choice["configuration"]
    said = f"is not established: ship the {choice['parent']}, the better parent on these."
    assert said in (out / "recipe.yaml").read_text()


def test_held_out_items_are_not_those_of_the_search(planted, searched):
    arena, held_out = open_arena(
        recipe_of_test(planted), Execution(device="cpu", include=(planted,))
    )
    seen = {item.hash for item in (*arena.question.items, *arena.score_items)}
    assert seen.isdisjoint(item.hash for item in held_out)
    content = searched[1]
    assert seen == set(content["items"]["gold"]) | set(content["items"]["score"])


def test_reused_layers_change_no_number_and_random_search_spends_as_much(planted):
    how = Execution(device="cpu", include=(planted,))
    arena, held_out = open_arena(recipe_of_test(planted, budget=700, confirm_items=20), how)
    guided_search(arena)
    assert arena._rescorer.reuses
    for one, found in [*arena.golds.items()][:6]:
        with arena.taking(one):
            full = arena.question.logprobs()
        assert full.tolist() == found.tolist()
    other, _ = open_arena(recipe_of_test(planted, budget=700, confirm_items=20), how)
    chosen = random_search(other)
    assert other.spent <= 700
    assert other.spent > 700 - len(other.question.items)
    assert chosen in other.golds
    confirmed = Confirmed.parents(arena, held_out)
    assert confirmed.test(confirmed.host, confirmed.host)["p"] == 1.0
    judged = confirmed.judge(confirmed.donor)
    assert not judged["exceeds"]


def test_wrong_numbers_are_refused(planted):
    with pytest.raises(RecipeError, match="budget: expected at least 667, got 10"):
        recipe_of_test(planted, budget=10)
    with pytest.raises(RecipeError, match="groups: expected at least 1"):
        recipe_of_test(planted, groups=0)
    how = Execution(device="cpu", include=(planted,))
    with pytest.raises(RecipeError, match="groups: expected at most 4, the number of layers"):
        open_arena(recipe_of_test(planted, groups=5), how)


def test_equal_models_leave_nothing_to_search(planted):
    recipe = replace(recipe_of_test(planted), donor=str(planted / "host"))
    with pytest.raises(RecipeError, match="differ in 0 units only, so there is nothing to compose"):
        open_arena(recipe, Execution(device="cpu", include=(planted,)))


def test_too_few_items_are_refused(planted, tmp_path):
    text = (planted / "letters.jsonl").read_text().splitlines()[:9]
    (tmp_path / "few.jsonl").write_text("\n".join(text) + "\n")
    task = TASK.format(data=tmp_path / "few.jsonl", choices=json.dumps([*LETTERS]))
    (tmp_path / "letters.yaml").write_text(task)
    with pytest.raises(EvalDataError, match="9 items are too few to search"):
        open_arena(recipe_of_test(planted), Execution(device="cpu", include=(tmp_path,)))
