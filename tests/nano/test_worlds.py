import hashlib
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from moegraft.evals.extract import extract, same_answer
from moegraft.nano import recipes, science_world, worlds

KINDS = recipes.VERIFIER_OF


@pytest.mark.parametrize("world", sorted(worlds.WORLDS))
def test_the_committed_items_are_the_generators_output(world, tmp_path):
    worlds.write_items(tmp_path)
    made = hashlib.sha256((tmp_path / f"{world}.jsonl").read_bytes()).hexdigest()
    kept = hashlib.sha256((worlds.ITEMS_FOLDER / f"{world}.jsonl").read_bytes()).hexdigest()
    assert made == kept


def test_there_are_a_thousand_different_items_of_each_world():
    for world in worlds.WORLDS:
        items = worlds.test_items(world)
        assert len({worlds.item_hash(item) for item in items}) == len(items) == 1000


@pytest.mark.parametrize("world", sorted(worlds.WORLDS))
def test_no_training_item_is_a_test_item(world):
    held_out = {worlds.item_hash(item) for item in worlds.test_items(world)}
    rng = Random("a training stream")
    drawn = {worlds.item_hash(worlds.training_item(world, rng)) for _ in range(3000)}
    assert not held_out & drawn


def test_no_training_record_asks_a_test_question():
    prompts = {
        module.prompt(item)
        for world, module in worlds.WORLDS.items()
        for item in worlds.test_items(world)
    }
    for recipe in recipes.RECIPES.values():
        stages = [recipes.demonstrations(recipe)[:1500], recipes.preferences(recipe)]
        if recipe.rl is not None:
            stages.append(recipes.tasks(recipe, 8))
        for records in stages:
            asked = {turn["content"] for record in records for turn in record["prompt"]}
            assert not prompts & asked


def test_no_pretraining_document_holds_a_test_question_with_its_passage():
    stems = set()
    for item in worlds.test_items("math"):
        stems.add(item["question"])
    for item in worlds.test_items("science"):
        stems.add(worlds.science_world.asked(item))
    text = "\n".join(islice(worlds.documents(Random("pretraining text")), 3000))
    assert not [stem for stem in stems if stem in text]
    for item in worlds.test_items("reading"):
        told = f"Text: {item['passage']}\n"
        if told in text:
            after = text.split(told, 1)[1].split("Text: ")[0]
            assert f"Question: {item['question']}\n" not in after


@pytest.mark.parametrize("world", sorted(worlds.WORLDS))
def test_a_response_is_verified_and_a_mistake_is_not(world):
    rng = Random(f"mistakes {world}")
    module, kind = worlds.WORLDS[world], KINDS[world]
    for item in worlds.test_items(world)[:300]:
        gold = worlds.gold(world, item)
        assert same_answer(kind, extract(kind, module.response(item)), [gold])
        wrong = module.mistake(item, rng)
        assert wrong != module.response(item)
        if world != "math":  # a miscounted step can still end in the right number
            assert not same_answer(kind, extract(kind, wrong), [gold])


def test_the_steps_of_a_word_problem_lead_to_its_answer():
    for item in worlds.test_items("math"):
        for step in item["steps"].rstrip(".").split(". "):
            left, right = step.split("=")
            assert eval(left) == int(right)
        assert int(item["answer"]) == int(right)
        assert 0 < int(item["answer"]) < 100


def test_answers_are_balanced():
    yes = Counter(item["answer"] for item in worlds.test_items("reading"))
    assert 450 < yes["yes"] < 550
    letters = Counter(item["answerKey"] for item in worlds.test_items("science"))
    assert all(190 < letters[letter] < 310 for letter in "ABCD")


def test_a_science_question_has_one_right_option():
    science = worlds.science_world
    for item in worlds.test_items("science"):
        texts = item["choices"]["text"]
        assert len(set(texts)) == 4
        attribute = [
            (attribute, about_name, about_value)
            for attribute, (about_name, about_value, _) in science._FORMS.items()
        ]
        right = texts["ABCD".index(item["answerKey"])]
        true_pairs = {(a, n, v) for a, n, v in science.FACTS}
        good = set()
        for kind, name, value in true_pairs:
            by_name, by_value = next((n, v) for a, n, v in attribute if a == kind)
            described = [phrase for phrase, (n, _) in science.DESCRIPTIONS.items() if n == name]
            for subject in (science._named(name), *described):
                if by_name.format(n=subject) == item["question"]:
                    good.add(value)
            if by_value.format(v=value) == item["question"]:
                good.add(name)
        assert set(texts) & good == {right}


def test_a_described_animal_or_material_is_the_only_one_of_its_kind():
    science = worlds.science_world
    for phrase, (name, attribute) in science.DESCRIPTIONS.items():
        value = next(v for a, n, v in science.FACTS if (a, n) == (attribute, name))
        assert value in phrase
        assert [n for a, n, v in science.FACTS if (a, v) == (attribute, value)] == [name]


def test_hard_items_are_of_a_kind_that_pretraining_never_shows():
    hard = [item for item in worlds.test_items("science") if "through" in item]
    long = [item for item in worlds.test_items("reading") if item["passage"].count(".") > 6]
    assert (len(hard), len(long)) == (500, 700)
    text = "\n".join(islice(worlds.documents(Random("pretraining text")), 3000))
    assert not [phrase for phrase in science_world.DESCRIPTIONS if phrase in text]
    passages = [line for line in text.splitlines() if line.startswith("Text: ")]
    assert max(passage.count(".") for passage in passages) == 6


def test_late_pretraining_adds_comparisons_that_are_right():
    late = islice(worlds.documents(Random("late"), worlds.LATE_TEXT_MIX), 300)
    found = [
        match
        for text in late
        if "Question" not in text
        for match in re.findall(r"(\w+), asked (\w+), so (yes|no)\.", text)
    ]
    assert len(found) > 100
    assert all((told == asked) == (verdict == "yes") for told, asked, verdict in found)


def test_a_sixth_of_the_facts_is_never_asked_in_training():
    assert len(worlds.science_world.HIDDEN) == len(worlds.science_world.FACTS) // 6


def test_the_task_file_holds_the_fixed_examples():
    from pathlib import Path

    import yaml

    import moegraft

    path = Path(moegraft.__file__).parent / "evals" / "tasks" / "nano_science.yaml"
    samples = yaml.safe_load(path.read_text())["fewshot_config"]["samples"]
    for sample, item in zip(samples, worlds.few_shots(), strict=True):
        spoken = item | {"answerKey": science_world.response(item)}
        assert sample == {name: spoken[name] for name in sample}
        assert sample.keys() == {"question", "choices", "answerKey"}
