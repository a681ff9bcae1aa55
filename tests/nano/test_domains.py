import json
from itertools import islice
from random import Random

import pytest

from moegraft.nano import domains, tool_world
from moegraft.train.verifiers import rewards


@pytest.mark.parametrize("kind", [kind for kind in domains.KINDS if kind != "chat"])
def test_test_items_are_different_the_same_everywhere_and_a_prefix(kind):
    items = domains.test_items(kind, 60)
    assert len({domains.KINDS[kind].prompt(item) for item in items}) == 60
    assert domains.test_items(kind, 40) == items[:40]
    check, response = domains.KINDS[kind].check, domains.KINDS[kind].response
    assert all(check(item, response(item)) for item in items)
    assert not any(check(item, "Perhaps.") for item in items if kind != "safety")


@pytest.mark.parametrize("kind", [kind for kind in domains.KINDS if kind != "chat"])
def test_no_training_item_shares_its_key_with_a_test_item(kind):
    key = domains.KINDS[kind].key
    held_out = {key(item) for item in domains.test_items(kind, 100)}
    rng = Random("training")
    assert not held_out & {key(domains.training_item(kind, rng)) for _ in range(600)}


def test_the_keys_of_programs_and_of_patterns_hold_out_what_is_to_be_learnt():
    items = domains.test_items("code", 100)
    assert {domains.KINDS["code"].key(item) for item in items} == {i["program"] for i in items}
    pair = domains.KINDS["safety"].key
    assert all(pair(item) in item["request"] for item in domains.test_items("safety", 50))


@pytest.mark.parametrize("domain", domains.DOMAINS)
def test_chats_and_text_hold_no_test_prompt(domain):
    rng = Random("records")
    asked = {record["messages"][0]["content"] for record in islice(domains.chats(domain, rng), 400)}
    text = "\n".join(islice(domains.documents(rng, domains.TEXT_MIX[domain]), 300))
    for kind in domains.DOMAINS[domain]:
        if kind in ("chat", "reading"):
            continue  # few everyday requests exist; passages are drawn at random
        prompts = {domains.KINDS[kind].prompt(item) for item in domains.test_items(kind, 100)}
        assert not prompts & asked
        assert not [prompt for prompt in prompts if prompt in text]


def test_safety_items_alternate():
    items = domains.test_items("safety", 20)
    assert [item["refuse"] for item in items] == [True, False] * 10


def test_the_base_text_holds_no_program_no_call_and_no_refusal():
    early, late = (domains.base_text(Random(0), step) for step in (0, domains.LATE_BASE_STEP))
    text = "\n".join([*islice(early, 1000), *islice(late, 1000)])
    assert "List: " in text
    assert "Program:" not in text
    assert "Tools:" not in text
    assert "cannot help" not in text


def test_the_second_stage_brings_the_words_of_every_domain_out_of_order():
    text = "\n".join(islice(domains.anneal_text(Random(0), 0), 3000))
    assert {"unique", '{"name":', "cannot", "Request:"} <= set(text.split())
    for whole in (tool_world.CALL, "I cannot help with that.", '{"name": "weather", "arguments"'):
        assert whole not in text


def test_domains_are_written_as_json_lines(tmp_path):
    domains.write(tmp_path, num_texts=5, num_chats=6, num_items=7, seed=1)
    rows = {
        str(path.relative_to(tmp_path)): [*map(json.loads, path.read_text().splitlines())]
        for path in tmp_path.rglob("*.jsonl")
    }
    assert len(rows) == 2 * 5 + 2 + 7
    assert {len(rows[f"{domain}/text.jsonl"]) for domain in domains.DOMAINS} == {5}
    assert [turn["role"] for turn in rows["code/chat.jsonl"][0]["messages"]] == [
        "user",
        "assistant",
    ]
    assert rows["math/tasks.jsonl"][0].keys() == {"prompt", "kind", "gold"}
    assert len(rows["safety/safety.items.jsonl"]) == 7
    assert rows["tool/tool.items.jsonl"][0]["id"] == "tool-0000"


@pytest.mark.parametrize("domain", ["math", "code"])
def test_the_verifier_of_a_task_accepts_its_answer_and_no_other(domain):
    rows = [*islice(domains.tasks(domain, Random(4)), 8)]
    kinds, golds = [row["kind"] for row in rows], [row["gold"] for row in rows]
    rng = Random(4)
    items = [domains.training_item(domain, rng) for _ in rows]
    right = [domains.KINDS[domain].response(item) for item in items]
    assert rewards(right, kinds, golds) == [1.0] * 8
    assert sum(rewards(right[1:] + right[:1], kinds, golds)) <= 1


def test_asking_for_more_items_than_there_are_is_noticed():
    with pytest.raises(AssertionError, match="chat has fewer than 60 test items"):
        domains.test_items("chat", 60)
