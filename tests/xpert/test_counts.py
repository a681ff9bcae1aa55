import json

import pytest

from moegraft.errors import EvalDataError
from moegraft.xpert.counts import read_counts

LAYERS = {"first": 0, "last": 3}


def record(model="m", domain="a", layer=0, counts=None, **more):
    counts = {"0": 6, "2": 2} if counts is None else counts
    return {"model": model, "domain": domain, "layer": layer, "counts": counts, **more}


@pytest.fixture
def write(tmp_path):
    def save(*records):
        path = tmp_path / "counts.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
        return path

    return save


def test_experts_that_are_not_listed_have_no_tokens(write):
    table = read_counts(write(record(), record(domain="b", counts={"1": 4, "2": 4})), top_k=1)
    assert table.counts.tolist() == [[[6, 0, 2]], [[0, 4, 4]]]
    assert (table.domains, table.layers, table.num_tokens.tolist()) == (("a", "b"), (0,), [8, 8])


def test_first_choices_tell_how_many_experts_serve_a_token(write):
    top1 = record(kind="expert_counts_top1", counts={"0": 4})
    counts = {"0": 4, "1": 2, "2": 2}
    both = write(record(kind="expert_counts", counts=counts, total=8), {**top1, "total": 4})
    table = read_counts(both)
    assert (table.top_k, table.num_tokens.tolist()) == (2, [4])


def test_layers_without_a_number_go_by_their_position(write):
    rows = [record(layer=None, position=name, top_k=1) for name in LAYERS]
    assert read_counts(write(*rows)).layers == ("first", "last")


def test_domains_are_chosen_and_ordered(write):
    path = write(*(record(domain=name, top_k=1) for name in "abc"))
    assert read_counts(path, domains=["c", "a"]).domains == ("c", "a")
    with pytest.raises(EvalDataError, match="no domain 'd'; there are: a, b, c"):
        read_counts(path, domains=["d"])


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "no counts in it"),
        ([{"domain": "a"}], {}, ":1: expected a record with 'domain' and 'counts'"),
        ([record(counts={"x": 1})], {}, ":1: expert 'x': 1; expected a number"),
        ([record(counts={"0": -1})], {}, ":1: expert '0': -1; expected"),
        ([record(total=9)], {}, ":1: counts add up to 8, total says 9"),
        ([record(), record("n")], {}, "several models; choose with --model: m, n"),
        ([record()], {"model": "n"}, "no model 'n'; choose with --model: m"),
        ([record(), record()], {}, "m: several records of one domain and layer"),
        ([record(layer=1), record("m", "b")], {}, "domain 'a' lacks layer 0"),
        ([record()], {}, "how many experts serve a token; say it with --top-k"),
        ([record()], {"top_k": 2}, "counts do not fit 2 experts per token"),
        ([record(), record(layer=1, counts={"0": 7})], {"top_k": 1}, "the same number of tokens"),
    ],
)
def test_a_wrong_file_is_one_clear_line(write, records, options, message):
    with pytest.raises(EvalDataError, match=message) as raised:
        read_counts(write(*records), **options)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(EvalDataError, match="cannot be read"):
        read_counts(tmp_path / "none.jsonl")
    (tmp_path / "p.json").write_text('{"domains": ["a"]}')
    with pytest.raises(EvalDataError, match=r"expected profile\.json of"):
        read_counts(tmp_path / "p.json")
