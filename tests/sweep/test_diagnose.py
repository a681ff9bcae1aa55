import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moegraft.errors import IncompatibleError, RecipeError, RunError
from moegraft.evals.execution import Execution
from moegraft.evals.store import read_rows
from moegraft.evals.texts import Text
from moegraft.runtime import Host
from moegraft.sweep.coadaptation import CONTRASTS, sentences
from moegraft.sweep.design import SweepRecipe
from moegraft.sweep.diagnose import diagnose, diagnosed_configurations
from moegraft.sweep.diagnose_run import Material, diagnose_run
from moegraft.sweep.execute import run_sweep
from tiny_sweep import byte_tokenizer

WORDS = ["the cat sat on a mat while rain fell", "seven hills and nobody saw it", "on a mat"]
CPU = Execution(device="cpu")
PATTERN = "abcdefgh" * 4


def texts_of(words, answer=3, domain="words"):
    ids = [tuple(byte_tokenizer()(text)["input_ids"]) for text in words]
    return {
        domain: [Text(domain, str(i), one, answer, 0, f"{domain}:{i}") for i, one in enumerate(ids)]
    }


def diagnosed(host_path, donor_path, texts, **options):
    recipe = SweepRecipe(str(host_path), str(donor_path), preset="paper")
    host = Host.load(recipe.host, {"donor": recipe.donor}, device="cpu")
    found = diagnose(host, diagnosed_configurations(recipe), texts, **options)
    assert not any(module._forward_hooks for module in host.model.modules())
    return found


@pytest.fixture(scope="module")
def pair_diagnosis(chat_pair):
    return diagnosed(*chat_pair, texts_of(WORDS))


def permuted(source, target):
    """`source` with its experts in another order, and the router's rows with them."""
    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(source)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for layer in model.model.layers:
            mlp = layer.mlp
            for tensor in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj):
                tensor.copy_(tensor[order].clone())
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def trained_host(chat_pair, tmp_path_factory):
    """The tiny host after learning to continue one pattern."""
    path = tmp_path_factory.mktemp("trained") / "host"
    shutil.copytree(chat_pair[0], path)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    ids = torch.tensor([byte_tokenizer()(PATTERN[i : i + 16])["input_ids"] for i in range(8)])
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5
    model.save_pretrained(path)
    return path


def test_a_pair_of_equal_models_agrees_everywhere(chat_pair):
    found = diagnosed(chat_pair[0], chat_pair[0], texts_of(WORDS))
    for parents in found["agreement"].values():
        for measures in parents.values():
            assert np.allclose(measures["overlap"], 1)
            assert np.allclose(measures["divergence"], 0)
            assert np.allclose(measures["distance"], 0)
            assert np.allclose(measures["cosine"], 1)
    for entry in found["coadaptation"]:
        assert all(entry[name]["value"] == 0 for name in CONTRASTS)
        assert all(cell["followed"] == 1 for cell in entry["cells"])


def test_agreement_has_its_bounds_and_symmetry(pair_diagnosis):
    agreement = pair_diagnosis["agreement"]
    ours, theirs = agreement["host"]["donor"], agreement["donor"]["host"]
    assert ours["overlap"] == theirs["overlap"]
    assert ours["divergence"] == theirs["divergence"]
    assert ours["distance"] != theirs["distance"]
    for parents in agreement.values():
        for measures in parents.values():
            assert np.shape(measures["overlap"]) == (1, 2)
            assert 0 <= np.min(measures["overlap"]) <= np.max(measures["overlap"]) <= 1
            assert 0 <= np.min(measures["divergence"]) <= np.max(measures["divergence"]) <= 1
    assert set(agreement["router"]) == {"host", "donor"}
    assert list(agreement)[:2] == ["host", "donor"]
    assert {"attention+rest", "router+attention+rest", "attention+experts+rest"} < set(agreement)


def test_overlap_and_drift_equal_those_of_two_whole_passes(chat_pair, pair_diagnosis):
    layers: list[list[float]] = [[], []]
    drift: list[list[float]] = [[], []]
    models = [AutoModelForCausalLM.from_pretrained(path) for path in chat_pair]
    for text in texts_of(WORDS)["words"]:
        with torch.no_grad():
            outs = [
                model(
                    torch.tensor([text.ids]), output_router_logits=True, output_hidden_states=True
                )
                for model in models
            ]
        for layer in range(2):
            chosen = [out.router_logits[layer].topk(2).indices.tolist() for out in outs]
            layers[layer] += [
                len({*a} & {*b}) / 2 for a, b in zip(chosen[0], chosen[1], strict=True)
            ]
        own, reference = (out.hidden_states[1][0] for out in reversed(outs))
        drift[0] += ((own - reference).norm(dim=-1) / reference.norm(dim=-1)).tolist()
    measures = pair_diagnosis["agreement"]["donor"]["host"]
    assert measures["overlap"][0] == pytest.approx([np.mean(row) for row in layers], abs=1e-6)
    assert measures["distance"][0][0] == pytest.approx(np.mean(drift[0]), rel=1e-5)


def test_the_result_does_not_depend_on_batches(chat_pair, pair_diagnosis):
    again = diagnosed(*chat_pair, texts_of(WORDS), batch_tokens=1)
    flat = [json.dumps(one["agreement"]["router"]["donor"]) for one in (again, pair_diagnosis)]
    values = [json.loads(one) for one in flat]
    for name, rows in values[0].items():
        assert np.allclose(rows, values[1][name], atol=2e-5)
    assert again["loss"]["words"] == pytest.approx(pair_diagnosis["loss"]["words"], rel=1e-5)


def test_only_the_routers_differ_then_only_their_weights_matter_in_the_first_layer(
    chat_pair, tmp_path
):
    donor = tmp_path / "donor"
    shutil.copytree(chat_pair[0], donor)
    model, other = (AutoModelForCausalLM.from_pretrained(path) for path in chat_pair)
    with torch.no_grad():
        for mine, theirs in zip(model.model.layers, other.model.layers, strict=True):
            mine.mlp.gate.weight.copy_(theirs.mlp.gate.weight)
    model.save_pretrained(donor)
    found = diagnosed(chat_pair[0], donor, texts_of(WORDS))
    weights, hidden = found["routers"]["weights"], found["routers"]["hidden"]
    between = found["agreement"]["donor"]["host"]
    assert hidden["overlap"][0][0] == 1
    assert weights["overlap"][0][0] == pytest.approx(between["overlap"][0][0])
    assert weights["overlap"][0][1] < 1
    assert hidden["overlap"][0][1] < 1


def test_permuted_experts_are_harmless_with_their_router_and_harmful_without(
    trained_host, tmp_path
):
    donor = permuted(trained_host, tmp_path / "donor")
    texts = texts_of([PATTERN[i : i + 16] for i in range(8)])
    found = diagnosed(trained_host, donor, texts)
    entry = next(e for e in found["coadaptation"] if e["others"] == "host")
    assert entry["condition"] == "all"
    losses = {(c["router"], c["experts"]): c["loss"] for c in entry["cells"]}
    assert losses["donor", "donor"] == pytest.approx(losses["host", "host"], abs=1e-4)
    assert entry["mismatch"]["interval"][0] > 0.5
    assert entry["router_on_host_experts"]["interval"][0] > 0.5
    assert entry["router_on_donor_experts"]["interval"][1] < -0.5
    followed = {(c["router"], c["experts"]): c["followed"] for c in entry["cells"]}
    assert followed["donor", "donor"] == pytest.approx(1)
    assert followed["donor", "host"] < 0.9
    assert "router and experts are co-adapted" in " ".join(found["sentences"])
    assert "the donor's router raises the loss by" in found["sentences"][0]


def test_co_adaptation_is_claimed_only_where_the_test_says_so_too():
    effect = {"value": 0.002, "interval": [0.0001, 0.005]}
    entry = {"condition": "all", "others": "donor", "mismatch": {**effect, "p": 0.107}}
    entry |= {"router_on_host_experts": effect, "router_on_donor_experts": effect}
    (_, said) = sentences([entry])
    assert said.endswith(
        "costs +0.002 nats per token [0.000, 0.005], p = .107: co-adaptation is not established."
    )
    entry["mismatch"]["p"] = 0.01
    assert sentences([entry])[1].endswith("p = .010: router and experts are co-adapted.")


def test_texts_that_share_a_beginning_count_it_once(chat_pair):
    shared = texts_of(["xyxy" + text for text in WORDS], answer=7)["words"]
    counted = [
        Text(t.domain, t.name, t.ids, t.answer, 4 if i else 0, t.cluster)
        for i, t in enumerate(shared)
    ]
    found = diagnosed(*chat_pair, {"words": counted})
    assert found["conditions"][0]["num_tokens"] == sum(map(len, WORDS)) + 4
    total = np.array(found["routing"]["host"]["frequency"]).sum(-1)
    assert np.allclose(total, 2, atol=1e-5)


def test_a_donor_with_other_token_ids_is_refused(chat_pair, tmp_path):
    donor = tmp_path / "donor"
    shutil.copytree(chat_pair[1], donor)
    byte_tokenizer(reverse=True).save_pretrained(donor)
    with pytest.raises(IncompatibleError, match="cannot read the same tokens"):
        diagnosed(chat_pair[0], donor, texts_of(WORDS))


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, chat_pair, tiny_tasks):
    run = tmp_path_factory.mktemp("diagnose") / "run"
    recipe = SweepRecipe(
        *map(str, chat_pair),
        configurations=("router", "experts"),
        conditions=("tiny_write", "tiny_choose"),
        limit=5,
    )
    assert run_sweep(recipe, run, Execution(device="cpu", include=(tiny_tasks,)))
    return run


def test_losses_are_the_log_probabilities_of_gold_answers_that_the_run_has(
    finished_run, tiny_tasks
):
    steps = []
    how = Execution(include=(tiny_tasks,), device="cpu")
    found = diagnose_run(finished_run, None, how, on_step=lambda *step: steps.append(step))
    assert json.loads((finished_run / "diagnose.json").read_text()) == found
    assert steps[-1] == (10, 10)
    assert found["notes"] == []
    writing, choosing = found["conditions"]
    assert (writing["num_texts"], choosing["num_texts"]) == (5, 5)
    for configuration in ("host", "donor", "router", "experts"):
        rows = read_rows(finished_run, configuration, "tiny_write").values()
        assert len({len(row["gold"]) for row in rows}) == 1  # so that sums and means agree
        mean = -sum(row["gold_logprob"] for row in rows) / writing["num_predicted"]
        assert found["loss"]["tiny_write"][configuration] == pytest.approx(mean, rel=1e-5)


def test_other_texts_can_be_read_instead(finished_run, tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    found = diagnose_run(finished_run, Material(texts=(str(file),)), CPU)
    assert [about["name"] for about in found["conditions"]] == ["words"]
    assert found["conditions"][0]["num_predicted"] == sum(len(text) - 1 for text in WORDS)


def test_what_is_no_run_or_has_changed_is_refused(finished_run, tiny_tasks, tmp_path):
    with pytest.raises(RunError, match=r"no recipe\.yaml found; expected a run directory"):
        diagnose_run(tmp_path)
    with pytest.raises(RecipeError, match="conditions have no effect with other texts"):
        Material(conditions=("tiny_write",), texts=("words.txt",))
    with pytest.raises(RunError, match="no condition 'tiny'; the run has: tiny_write"):
        diagnose_run(finished_run, Material(conditions=("tiny",)))
    tasks = tmp_path / "tasks"
    shutil.copytree(tiny_tasks, tasks)
    task = tasks / "tiny_write.yaml"
    task.write_text(task.read_text().replace("How much is", "What is"))
    with pytest.raises(RunError, match="has another prompt than in the run"):
        diagnose_run(finished_run, None, Execution(include=(tasks,), device="cpu"))


def test_other_weights_under_the_same_path_are_refused(finished_run, chat_pair, tmp_path):
    host = tmp_path / "host"
    shutil.copytree(chat_pair[1], host)
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    recipe = (run / "recipe.yaml").read_text().replace(str(chat_pair[0]), str(host))
    (run / "recipe.yaml").write_text(recipe)
    with pytest.raises(RunError, match="has other weights than the run evaluated"):
        diagnose_run(run, None, CPU)
