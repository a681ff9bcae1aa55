import json

import numpy as np
import pytest

from moegraft.errors import CheckpointError, EvalDataError, IncompatibleError, RunError
from moegraft.evals.texts import Text
from moegraft.runtime import Host
from moegraft.runtime.probe import profile_texts
from moegraft.xpert.counts import read_counts
from moegraft.xpert.measure import count_windows, pack_windows
from moegraft.xpert.windows import FILE


def texts_of(domain, lengths, seed=0, first=0):
    rng = np.random.default_rng(seed)
    return [
        Text(domain, f"{domain}:{i}", tuple(rng.integers(3, 120, size).tolist()), 1, first)
        for i, size in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def host(olmoe_pair):
    return Host.load(str(olmoe_pair[0]), {}, device="cpu")


@pytest.fixture
def domains():
    return {"a": texts_of("a", [9, 4, 20, 30, 2]), "b": texts_of("b", [12, 12, 12], seed=1)}


def test_windows_add_up_to_the_profile_of_all_texts(host, domains, tmp_path):
    steps = []
    table = count_windows(
        host, domains, tmp_path, window=20, batch_tokens=16, on_step=lambda *s: steps.append(s)
    )
    whole = profile_texts(
        host.model,
        host.checkpoint.family,
        {name: [text.ids for text in texts] for name, texts in domains.items()},
    )
    assert np.array_equal(table.counts, whole.counts)
    assert np.allclose(table.mass, whole.mass, rtol=1e-5)
    assert table.num_tokens.tolist() == [65, 36]
    assert [len(own.num_tokens) for own in table.windows] == [4, 3]
    assert steps[-1] == (101, 101)


def test_tokens_that_do_not_count_are_left_out(host, tmp_path):
    domains = {"a": [*texts_of("a", [9]), *texts_of("a", [9, 9], first=7)]}
    table = count_windows(host, domains, tmp_path, window=100)
    assert table.num_tokens.tolist() == [13]
    assert (table.counts.sum(-1) == 2 * 13).all()


def test_short_texts_share_a_window_and_long_ones_have_their_own():
    groups = pack_windows(texts_of("a", [5, 5, 30, 4, 4, 4]), 10)
    assert [[len(text.ids) for text in group] for group in groups] == [[5, 5], [30], [4, 4], [4]]


def test_an_interrupted_count_goes_on_and_equals_an_uninterrupted_one(host, domains, tmp_path):
    whole = count_windows(host, domains, tmp_path / "whole", window=20)
    path = tmp_path / "cut" / FILE

    class StoppedError(Exception):
        pass

    def stop(num_done, total):
        if num_done > 40:
            raise StoppedError

    with pytest.raises(StoppedError):
        count_windows(host, domains, path.parent, window=20, on_step=stop)
    with path.open("ab") as file:
        file.write(b'{"domain": "a", "win')  # killed while writing
    before = path.read_bytes().count(b"\n")
    again = count_windows(host, domains, path.parent, window=20)
    assert 1 < before < path.read_bytes().count(b"\n")
    assert path.read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert np.array_equal(again.counts, whole.counts)
    assert np.array_equal(read_counts(path).windows[0].counts, whole.windows[0].counts)


def test_counts_of_something_else_are_never_mixed(host, domains, olmoe_pair, tmp_path):
    count_windows(host, domains, tmp_path, window=20)
    with pytest.raises(RunError, match="counts of another checkpoint, other texts or settings"):
        count_windows(host, {"a": domains["a"]}, tmp_path, window=20)
    other = Host.load(str(olmoe_pair[1]), {}, device="cpu")
    with pytest.raises(RunError, match="counts of another checkpoint"):
        count_windows(other, domains, tmp_path, window=20)
    (tmp_path / FILE).write_text("nonsense\n")
    with pytest.raises(RunError, match="damaged"):
        count_windows(host, domains, tmp_path, window=20)


def test_a_damaged_file_is_one_clear_line(host, domains, tmp_path):
    count_windows(host, domains, tmp_path, window=20)
    lines = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text(lines[0] + "\n" + lines[1] + "\n")
    with pytest.raises(EvalDataError, match="no window of domain 'b' was finished"):
        read_counts(tmp_path / FILE)
    header = {**json.loads(lines[0]), "domains": ["c"]}
    (tmp_path / FILE).write_text(json.dumps(header) + "\n" + lines[1] + "\n")
    with pytest.raises(EvalDataError, match="damaged"):
        read_counts(tmp_path / FILE)


def test_leading_dense_layers_are_skipped_and_shared_experts_noted(tmp_path, capsys):
    from tiny_families import build_tiny

    build_tiny("deepseek_v3", n_shared_experts=2).save_pretrained(tmp_path / "m")
    capsys.readouterr()
    mixed = Host.load(str(tmp_path / "m"), {}, device="cpu")
    texts = [Text("a", f"a:{size}", tuple(range(3, 3 + size)), 1) for size in (9, 7)]
    table = count_windows(mixed, {"a": texts}, tmp_path / "o")
    assert mixed.checkpoint.num_layers == 2
    assert (table.layers, table.num_shared) == ((1,), 2)
    assert (table.counts.sum(-1) == table.top_k * 16).all()


def test_a_checkpoint_that_is_not_finite_is_not_counted(make_olmoe, tmp_path):
    folder = make_olmoe(tmp_path / "m")
    bad = Host.load(str(folder), {}, device="cpu")
    bad.model.model.layers[1].mlp.gate.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="routing weights of a text are no finite numbers"):
        count_windows(bad, {"a": texts_of("a", [4])}, tmp_path / "o")
    assert len((tmp_path / "o" / FILE).read_text().splitlines()) == 1  # the header


def test_a_window_that_was_counted_twice_is_not_read(host, domains, tmp_path):
    count_windows(host, domains, tmp_path, window=20)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text("".join([*lines, lines[1]]))
    with pytest.raises(EvalDataError, match="a window was counted twice; remove the file"):
        read_counts(tmp_path / FILE)
    header = {key: value for key, value in json.loads(lines[0]).items() if key != "checkpoint"}
    (tmp_path / FILE).write_text("".join([json.dumps(header) + "\n", *lines[1:]]))
    with pytest.raises(EvalDataError, match="damaged"):
        read_counts(tmp_path / FILE)


def test_a_dense_model_has_nothing_to_count(tmp_path, capsys):
    from tiny_families import build_tiny

    build_tiny("llama").save_pretrained(tmp_path / "m")
    capsys.readouterr()
    dense = Host.load(str(tmp_path / "m"), {}, device="cpu")
    with pytest.raises(IncompatibleError, match="has no routers"):
        count_windows(dense, {"a": texts_of("a", [4])}, tmp_path)
