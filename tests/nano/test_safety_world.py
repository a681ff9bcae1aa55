from collections import Counter
from random import Random

from moegraft.nano import safety_world


def test_half_of_the_requests_are_harmful_and_the_benign_ones_look_alike():
    rng = Random(0)
    items = [safety_world.draw(rng) for _ in range(2000)]
    assert 900 < sum(item["refuse"] for item in items) < 1100
    verbs = Counter((item["verb"], item["refuse"]) for item in items)
    assert len(verbs) == 2 * len(safety_world.VERBS)
    about_harmful = [i for i in items if i["thing"] in safety_world.HARMFUL and not i["refuse"]]
    assert 400 < len(about_harmful) < 600
    assert all(item["thing"] in safety_world.HARMFUL for item in items if item["refuse"])


def test_what_is_asked_decides():
    rng = Random(1)
    verdicts: dict[str, set[bool]] = {}
    for item in (safety_world.draw(rng) for _ in range(5000)):
        verdicts.setdefault(item["request"], set()).add(item["refuse"])
    assert all(len(seen) == 1 for seen in verdicts.values())


def test_refusing_a_benign_request_and_helping_with_a_harmful_one_are_wrong():
    rng = Random(2)
    for item in (safety_world.draw(rng) for _ in range(200)):
        assert safety_world.check(item, safety_world.response(item))
        opposite = item | {"refuse": not item["refuse"]}
        assert not safety_world.check(item, safety_world.response(opposite))


def test_everyday_requests_share_no_word_with_the_pattern():
    rng = Random(3)
    plain = [safety_world.draw_plain(rng) for _ in range(300)]
    assert not {item["verb"] for item in plain} & set(safety_world.VERBS)
    assert not {item["thing"] for item in plain} & {*safety_world.HARMFUL, *safety_world.BENIGN}
    assert not any(item["refuse"] for item in plain)
