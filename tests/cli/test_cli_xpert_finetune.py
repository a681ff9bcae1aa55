import json
import sys

import pytest

from moegraft.cli import main

pytestmark = pytest.mark.filterwarnings(
    # transformers and accelerate while training; none is ours to mend
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
TASK = """
task: tiny_sign
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{what}}}} is"
doc_to_choice: ["up", "down"]
doc_to_target: "{{{{sign}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def finetune(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moegraft", "xpert", "finetune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        out, err = capsys.readouterr()
        assert "…" not in out  # no cell is cut
        assert "it/s]" not in err and " examples [" not in err  # no bars of other libraries
        return code if isinstance(code, int) else 0, out, err

    return run


def test_arms_are_finetuned_and_compared(finetune, chat_pair, tmp_path):
    docs = [{"what": f"a {i}", "sign": i % 2} for i in range(8)]
    data = tmp_path / "signs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tiny_sign.yaml").write_text(TASK.format(data=data))
    one, other = chat_pair
    for seed in (0, 1):  # as `moegraft xpert compare --keep-models` leaves them
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / f"seed-{seed}").symlink_to(one)
    arms = (f"one={tmp_path / 'one'}", f"other={other},{other}")
    options = ("--task", "tiny_sign", "--include", tmp_path, "--out", tmp_path / "run")
    small = ("--epochs", 1, "--length", 32, "--batch", 2, "--rate", 0.001, "--device", "cpu")
    code, out, _ = finetune(*arms, *options, *small, "--json")
    assert code == 0
    found = json.loads(out)
    assert {row["arm"] for row in found["table"]} == {"one", "other"}
    code, out, err = finetune(*arms, *options, *small)  # nothing is left to do
    assert code == 0 and "tiny_sign" in out and "log p of gold" in out
    assert "one" in err and "other" in err


def test_arms_are_named_and_distinct(finetune, tmp_path):
    options = ("--task", "xpert_piqa", "--out", tmp_path / "run")
    code, _, err = finetune("nano:base", *options)
    assert code == 2 and "expected ARM=CHECKPOINT,CHECKPOINT,..." in err
    code, _, err = finetune("a=x,y", "a=z,w", *options)
    assert code == 2 and "arm 'a' is named twice" in err
    code, _, err = finetune("a=x,y", *options)
    assert code == 2 and "two arms or more, got 1" in err
    (tmp_path / "none").mkdir()
    code, _, err = finetune(f"a={tmp_path / 'none'}", "b=z,w", *options)
    assert code == 2 and "neither a checkpoint nor a folder of seed-* checkpoints" in err
    assert not (tmp_path / "run").exists()
