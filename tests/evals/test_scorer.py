"""Our scorer gives what lm-eval's own HFLM gives, and computes shared tokens once."""

import logging

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from moegraft.errors import ResourceError
from moegraft.evals.scorer import Scorer
from moegraft.evals.slots import Forward
from tiny_models import FAMILIES, choice_requests, instances, tiny_model
from tiny_sweep import byte_tokenizer

pytestmark = pytest.mark.filterwarnings(
    # transformers warns about its own deprecated arguments on some families
    "ignore::FutureWarning",
)
GREEDY = {"until": ["\n\n", "e "], "max_gen_toks": 24, "do_sample": False}


def hflm(family: str) -> HFLM:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=tiny_model(family), tokenizer=byte_tokenizer(), batch_size=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_equal_those_of_hflm(family):
    requests = instances("loglikelihood", choice_requests())
    expected = hflm(family).loglikelihood(requests, disable_tqdm=True)
    found = Scorer(tiny_model(family), byte_tokenizer(), max_tokens=700).loglikelihood(requests)
    assert len(found) == len(expected)
    for (logprob, greedy), (their_logprob, their_greedy) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(their_logprob, abs=1e-4)  # float32, other batch shapes
        assert greedy == their_greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_texts_equal_those_of_hflm(family):
    contexts = [context for context, _ in choice_requests(8)[::4] if context]
    requests = instances("generate_until", [(context, GREEDY) for context in contexts])
    expected = hflm(family).generate_until(requests, disable_tqdm=True)
    assert Scorer(tiny_model(family), byte_tokenizer()).generate_until(requests) == expected


def test_greedy_text_equals_that_of_generate():
    model, tokenizer = tiny_model("olmoe"), byte_tokenizer()
    context = choice_requests(1)[0][0]
    ids = torch.tensor([tokenizer(context)["input_ids"]])
    output = model.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
    (text,) = Scorer(model, tokenizer).generate_until(
        instances("generate_until", [(context, {"until": [], "max_gen_toks": 32})])
    )
    assert text == tokenizer.decode(output, skip_special_tokens=True)


def test_rolling_log_likelihoods_equal_those_of_hflm():
    requests = instances("loglikelihood_rolling", [("seven hills",), ("rain " * 300,)])
    expected = hflm("olmoe").loglikelihood_rolling(requests, disable_tqdm=True)
    found = Scorer(tiny_model("olmoe"), byte_tokenizer()).loglikelihood_rolling(requests)
    assert found == pytest.approx(expected, abs=1e-3, rel=1e-6)  # sums over 1,500 tokens


def test_accuracies_in_simple_evaluate_equal_those_of_hflm(tiny_tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tiny_tasks), include_defaults=False)
    results = [
        simple_evaluate(
            model=lm,
            tasks=["tiny_choose", "tiny_write"],
            task_manager=manager,
            apply_chat_template=True,
            bootstrap_iters=0,
            log_samples=False,
        )["results"]
        for lm in (Scorer(tiny_model("olmoe"), byte_tokenizer()), hflm("olmoe"))
    ]
    ours, theirs = [{task: r[task] for task in ("tiny_choose", "tiny_write")} for r in results]
    assert ours == theirs


@pytest.fixture
def token_counts(monkeypatch):
    """Numbers of tokens of each forward pass."""
    counts: list[int] = []
    call = Forward.__call__

    def counting(self, cache, ids, **kwargs):
        counts.append(ids.numel())
        return call(self, cache, ids, **kwargs)

    monkeypatch.setattr(Forward, "__call__", counting)
    return counts


def test_shared_tokens_are_computed_once(token_counts):
    requests = choice_requests(24)[:96]
    tokenizer = byte_tokenizer()
    whole = [tokenizer(c + r)["input_ids"][:-1] for c, r in requests]
    distinct = len({tuple(ids[: n + 1]) for ids in whole for n in range(len(ids))})
    Scorer(tiny_model("olmoe"), tokenizer).loglikelihood(instances("loglikelihood", requests))
    assert sum(token_counts) < 1.25 * distinct  # padding of the last rows
    assert sum(token_counts) < 0.15 * sum(len(ids) for ids in whole)


def test_choices_of_one_token_cost_nothing_beyond_their_context(token_counts):
    context = "Q: is it raining?\nA:"  # one token per byte
    requests = instances("loglikelihood", [(context, letter) for letter in "ABCDEFGH"])
    Scorer(tiny_model("olmoe"), byte_tokenizer()).loglikelihood(requests)
    assert token_counts == [len(context)]


def test_running_out_of_memory_halves_the_batch(monkeypatch, caplog):
    call = Forward.__call__

    def small_device(self, cache, ids, **kwargs):
        if ids.numel() > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, cache, ids, **kwargs)

    requests = instances("loglikelihood", choice_requests(24))
    prompts = instances("generate_until", [(c, GREEDY) for c, _ in choice_requests(8)[-4:-1]] * 9)
    scorer = Scorer(tiny_model("olmoe"), byte_tokenizer())
    expected = scorer.loglikelihood(requests), scorer.generate_until(prompts)
    monkeypatch.setattr(Forward, "__call__", small_device)
    found = scorer.loglikelihood(requests), scorer.generate_until(prompts)
    assert [f[0] for f in found[0]] == pytest.approx([e[0] for e in expected[0]], abs=1e-5)
    assert found[1] == expected[1]
    assert "out of memory" in caplog.text


def test_a_single_item_that_does_not_fit_is_an_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Forward, "__call__", full)
    scorer = Scorer(tiny_model("olmoe"), byte_tokenizer(), max_rows=2)
    with pytest.raises(ResourceError, match="single item"):
        scorer.loglikelihood(instances("loglikelihood", [("a", "b")]))
    with pytest.raises(ResourceError, match="single text"):
        scorer.generate_until(instances("generate_until", [("a", GREEDY)]))


def test_a_model_whose_state_cannot_branch_says_so_once(caplog):
    scorer = Scorer(tiny_model("jamba"), byte_tokenizer())
    for _ in range(2):
        scorer.loglikelihood(instances("loglikelihood", [("rain", " fell")]))
    assert caplog.text.count("cannot branch") == 1


def test_generation_stops_on_the_end_tokens_of_every_checkpoint(chat_pair):
    from moegraft.runtime import Host

    host = Host.load(str(chat_pair[0]), {"donor": str(chat_pair[1])}, device="cpu")
    scorer = Scorer(host)
    assert scorer.eos_ids == sorted(host.eos_ids)
    request = instances("generate_until", [("hello", {"until": [], "max_gen_toks": 6})])
    assert scorer.generate_until(request) != [""]
    assert Scorer(host, eos_ids=range(258)).generate_until(request) == [""]


def test_patches_are_applied_for_each_request_list(chat_pair):
    from moegraft.runtime import Host, Patch

    host = Host.load(str(chat_pair[0]), {"donor": str(chat_pair[1])}, device="cpu")
    name = "model.layers.0.self_attn.q_proj.weight"
    requests = instances("loglikelihood", [("rain", " fell"), ("hills", " seven")])
    plain = Scorer(host).loglikelihood(requests)
    patched = Scorer(host, patches=lambda: [Patch(name, host.donor_parameter("donor", name))])
    assert patched.loglikelihood(requests) != plain
    assert Scorer(host).loglikelihood(requests) == plain
