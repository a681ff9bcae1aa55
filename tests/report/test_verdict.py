from moegraft.report.summary import summarize
from moegraft.report.verdict import verdicts


def test_the_verdict_says_what_was_planted(paper_summary):
    found = dict(sentence.split(": ", 1) for sentence in verdicts(paper_summary))
    assert found["nano_math/cot"].startswith("The donor is ahead by ")
    assert "Alone, the donor's experts (+" in found["nano_math/cot"]
    assert "of the gap) raise the host's score." in found["nano_math/cot"]
    assert "no effect is established for router" in found["nano_math/cot"]
    assert found["nano_reading/0-shot"].startswith("No difference between donor and host is")
    assert found["nano_science/0-shot"].startswith("The host is ahead by ")
    assert "lower it." in found["nano_science/0-shot"]
    for text in found.values():
        assert "that it exceeds both parents is not established." in text


def test_a_composition_that_beats_both_parents_is_said_to_be_picked_on_the_same_items(
    tmp_path, make_row, put_cell
):
    for name, right in {"host": 50, "donor": 50, "router": 50, "experts": 90}.items():
        rows = [make_row(str(place), float(place < right)) for place in range(100)]
        put_cell(tmp_path, "items", name, "task", rows)
    (text,) = verdicts(summarize(tmp_path, num_resamples=500))[1:]
    assert "The best composition is experts with 90.0 %" in text
    assert "it exceeds both parents on these items, but it was picked among 2" in text


def test_an_unfinished_run_says_so_first(tmp_path, make_row, put_cell):
    put_cell(tmp_path, "items", "host", "task", [make_row("a", 1.0)])
    assert verdicts(summarize(tmp_path))[0].startswith("The run is not finished")
