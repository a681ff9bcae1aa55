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
        ([record(counts={})], {"top_k": 1}, ":1: no expert has a count"),
        ([record(counts={"99999999": 1})], {}, ":1: expert '99999999': 1; expected a number"),
        ([record(counts={"0": 10**30})], {}, ":1: expert '0': 10+; expected a number"),
        ([record(counts={"01": 1})], {}, ":1: expert '01': 1; expected a number"),
        ([record(layer=[1])], {}, ":1: expected a record with 'domain' and 'counts'"),
        ([record(top_k=0)], {}, "0 experts per token; expected at least 1"),
        ([record(top_k=1), record(domain="b", top_k=2)], {}, r"differ in top_k: \[1, 2\]"),
        ([record(top_k=1)], {"domains": ["a", "a"]}, "--domain: a, a: one of them is named twice"),
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


PROFILE = {
    "checkpoint": "m",
    "domains": ["a"],
    "layers": [0],
    "top_k": 1,
    "num_tokens": [10],
    "counts": [[[6, 4]]],
    "routing_mass": [[[0.6, 0.4]]],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ["a", "b"]}, r"of 2 different domains, 1 layers .* got the shape"),
        ({"layers": [0, 1]}, r"of 1 different domains, 2 layers"),
        ({"counts": [[6, 4]]}, r"counts of the shape \(1, 2\)"),
        ({"counts": [[[6, -4]]]}, "counts do not fit 1 experts per token"),
        ({"counts": [[[-6, 16]]]}, "counts do not fit 1 experts per token"),
        ({"num_tokens": [0]}, "counts do not fit"),
        ({"routing_mass": [[[0.6]]]}, r"mass of \(1, 1, 1\)"),
        ({"routing_mass": [[[0.6, float("nan")]]]}, "routing mass that is no finite number"),
    ],
)
def test_a_profile_that_contradicts_itself_is_one_clear_line(tmp_path, changes, message):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    assert read_counts(path).counts.tolist() == [[[6, 4]]]
    path.write_text(json.dumps(PROFILE | changes))
    with pytest.raises(EvalDataError, match=message) as raised:
        read_counts(path)
    assert "\n" not in str(raised.value) and "profile.json" in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_first_record(write):
    path = write(record(top_k=1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_counts(path).num_tokens.tolist() == [8]
