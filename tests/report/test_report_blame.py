"""What an attribution says: sentences, table, map."""

from xml.etree import ElementTree

import pytest

from moegraft.report.blame import BlameReport, blame_markdown, blame_svg


def unit(component, layer, expert, value):
    return {"component": component, "layer": layer, "expert": expert, "value": value}


def test_of(effect, interval, p=0.01, mean=-1.0):
    return {"effect": effect, "interval": interval, "p": p, "mean": mean, "test": "sign-flip"}


test_of.__test__ = False


def make_report(units, share=(0.75, 0.6, 0.9)) -> BlameReport:
    top = [u for u in units if u["value"] > 0]
    tests = [
        {**u, **test_of(u["value"], [0.1, 0.9]), "p_holm": 0.02 * (i + 1), "confirmed": i < 2}
        for i, u in enumerate(top)
    ]
    share_kept = share and {"value": share[0], "interval": [*share[1:]]}
    return BlameReport(
        {
            "recipe": {
                "host": "a/host",
                "donor": "b/donor",
                "method": "integrated",
                "path_points": 4,
                "rule": "gauss",
            },
            "condition": "task<1>",
            "items": {"ranking": ["x"] * 64, "confirmation": ["y"] * 50},
            "measured": {"host": -3.0, "donor": -1.0, "difference": 2.0},
            "attributed": {"total": 1.9, "completeness_error": -0.1},
            "units": units,
            "top": top,
            "notes": ["the tokenizers differ"],
            "confirmed": {
                "num_items": 50,
                "level": 0.95,
                "units": tests,
                "together": test_of(1.5, [1.2, 1.8]),
                "donor": test_of(2.0, [1.7, 2.3]),
                "share_kept": share_kept,
                "scores": {
                    "metric": "acc",
                    "host": 0.2,
                    "together": test_of(0.31, [0.2, 0.4], 0.0001, 0.51),
                    "donor": test_of(0.4, [0.3, 0.5], 0.0001, 0.6),
                },
            },
        }
    )


@pytest.fixture
def experts():
    values = [[0.5, -0.2, 0.01], [0.3, 0.0, -0.4]]
    return make_report(
        [unit("experts", i, e, v) for i, row in enumerate(values) for e, v in enumerate(row)]
    )


def test_the_sentences_say_difference_completeness_confirmation_share_and_score(experts):
    said = " ".join(experts.sentences())
    assert "changes by +2 nats per item (64 ranking items)" in said
    assert "add up to +1.9: they miss the measured difference by -0.1" in said
    assert "On 50 other items, 2 of the 3 units ranked first" in said
    assert "+1.5 [+1.2, +1.8], 75.0% of the donor's gain [60.0, 90.0]" in said
    assert "host 20.0, with these units 51.0, donor 60.0; units minus host +31.0" in said


def test_no_share_is_told_where_the_donor_is_not_shown_to_be_better(experts):
    report = make_report(list(experts.content["units"]), share=None)
    assert "no gain to keep" in " ".join(report.sentences())


def test_the_table_has_one_row_per_top_unit(experts):
    text = blame_markdown(experts)
    assert "| experts[0] of layer 0 | +0.5 | +0.5 [+0.1, +0.9] | p = .020 | yes |\n" in text
    assert text.count("| yes |") == 2
    assert text.count("| no |") == 1
    assert "Note: the tokenizers differ." in text


def test_the_map_is_xml_with_a_square_per_unit_and_frames_for_the_top(experts):
    root = ElementTree.fromstring(blame_svg(experts))
    space = "{http://www.w3.org/2000/svg}"
    squares = [r for r in root.iter(f"{space}rect") if r.find(f"{space}title") is not None]
    assert len(squares) == 6
    told = {r.find(f"{space}title").text: r for r in squares}
    assert told["experts[0] of layer 0: +0.5"].get("stroke-width") == "2.5"
    assert told["experts[2] of layer 0: +0.01"].get("stroke-width") == "2.5"
    assert told["experts[1] of layer 0: -0.2"].get("stroke-width") is None
    gain, loss = (
        told[name].get("fill")
        for name in ("experts[0] of layer 0: +0.5", "experts[2] of layer 1: -0.4")
    )
    assert gain != loss
    assert "task&lt;1&gt;" in blame_svg(experts)


def test_components_without_a_layer_stand_on_a_row_of_their_own():
    report = make_report(
        [unit("embedding", None, None, 0.1), unit("attention", 0, None, 0.5)],
    )
    root = ElementTree.fromstring(blame_svg(report))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"outside", "layer 0", "embedding", "attention"} <= set(texts)
