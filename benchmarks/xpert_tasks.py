"""Run XPERT's ten benchmarks on some items with one model, and show what is asked and answered.

    python benchmarks/xpert_tasks.py nano:base --data DIR --limit 20 --show

DIR holds winogrande/validation.jsonl, piqa/validation.jsonl, boolq/validation.jsonl,
medmcqa/dev.jsonl, casehold/test.jsonl, dolly/, self_instruct/, vicuna/, sinst/ and
uinst/validation.jsonl in their published fields.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moegraft.checkpoint.plain import locate
from moegraft.evals import Scorer, load_condition
from moegraft.evals.judge import score_items
from moegraft.runtime.load import no_progress_bars

CHANCE = {
    "xpert_winogrande": 0.5,
    "xpert_piqa": 0.5,
    "xpert_boolq": 0.5,
    "xpert_medmcqa": 0.25,
    "xpert_casehold": 0.2,
    "xpert_dolly": None,
    "xpert_self_instruct": None,
    "xpert_vicuna": None,
    "xpert_sni": None,
    "xpert_unni": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--chat", action="store_true", help="wrap prompts in the chat template")
    parser.add_argument("--show", action="store_true", help="print one item of each")
    parser.add_argument("--tokens", type=int, default=None, help="budget of a generation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = locate(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    scorer = Scorer(model, tokenizer)
    head = ["task", "items", "score", "sd", "chance", "prompt", "written", "cut", "seconds"]
    print(f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|")
    for name, chance in CHANCE.items():
        condition = load_condition(
            name,
            tokenizer=tokenizer,
            data_dir=args.data,
            limit=args.limit,
            chat_template=args.chat,
            max_gen_toks=args.tokens,
        )
        began = time.perf_counter()
        rows = {row["item"]: row for row in score_items(scorer, condition, condition.items)}
        took = time.perf_counter() - began
        print(table_line(condition, chance, [*rows.values()], took), flush=True)
        if args.show:
            show(condition.items[0], rows[condition.items[0].hash])


def table_line(condition, chance, rows, seconds) -> str:
    scores = [row["score"] for row in rows]
    mean = fmean(scores)
    sd = (sum((s - mean) ** 2 for s in scores) / max(1, len(scores) - 1)) ** 0.5
    cells = [
        condition.name,
        len(rows),
        f"{mean:.3f}",
        f"{sd:.3f}",
        "" if chance is None else chance,
        round(fmean(row["num_prompt_tokens"] for row in rows)),
        round(fmean(row["num_tokens"] for row in rows) / condition.repeats),
        sum(row["truncated"] for row in rows),
        round(seconds),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def show(item, row) -> None:
    for title, text in (
        ("prompt", item.prompt[-600:]),
        ("choices", item.choices),
        ("gold", row["gold"]),
        ("output", row["output"] or row["extracted"]),
        ("scores", row["scores"]),
    ):
        print(f"    {title}: {text!r}")


if __name__ == "__main__":
    main()
