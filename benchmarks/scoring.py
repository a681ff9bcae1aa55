"""Our scorer against lm-eval's HFLM, side by side in one process, on real evaluation files.

    python benchmarks/scoring.py --data DIR --tokenizer TOKENIZER.json [--out FILE.md]

DIR holds gsm8k/test.jsonl, boolq/validation.jsonl and arc_challenge/test.jsonl. The model is a
random OLMoE in float32. Each side gets the same requests as text, so both sides tokenize. HFLM
runs at each batch size once; its fastest one then alternates with our scorer. (Batch size `auto`
times batches of 64 five times and then, with this much memory, uses 64; add it with
--batch-sizes 8,32,64,auto.) For generation, both sides emit the end-of-sequence token at the
length of the reference answer.
"""

import argparse
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

import moegraft
from moegraft.evals import Scorer, load_condition
from moegraft.evals.condition import Condition

CASES = {  # condition: (bar, number of items)
    "paper_arc_challenge_choices/5-shot": (8.0, 32),
    "paper_arc_challenge_letters/5-shot": (4.0, 32),
    "paper_boolq_mc/5-shot": (5.0, 32),
    "paper_boolq_mc/0-shot": (1.0, 64),
    "paper_arc_challenge/5-shot": (4.0, 32),
    "paper_gsm8k_cot": (1.3, 64),
}


@dataclass
class Result:
    """Timings of one condition; seconds per run."""

    condition: str
    bar: float
    num_items: int
    hflm: dict[str, list[float]] = field(default_factory=dict)
    ours: list[float] = field(default_factory=list)
    agreement: str = ""

    @property
    def fastest(self) -> str:
        """HFLM's fastest batch size."""
        return min(self.hflm, key=lambda size: min(self.hflm[size]))

    @property
    def ratio(self) -> float:
        """HFLM's median over ours."""
        return statistics.median(self.hflm[self.fastest]) / statistics.median(self.ours)


def build_model(hidden: int, layers: int, experts: int, vocab: int) -> OlmoeForCausalLM:
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        num_experts=experts,
        num_experts_per_tok=max(2, experts // 8),
        max_position_embeddings=4096,
        pad_token_id=1,
        eos_token_id=50279,
    )
    model = OlmoeForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    model.set_experts_implementation("eager")
    return model


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
    )


class FixedLengths:
    """Emits EOS once a text is as long as its reference answer, and never before."""

    def __init__(self, tokenizer: Any, condition: Condition) -> None:
        self.eos = tokenizer.eos_token_id
        self.lengths = [len(item.gold_pair.continuation) for item in condition.items]
        self.by_prompt = {
            item.prompt_ids: n for item, n in zip(condition.items, self.lengths, strict=True)
        }
        self.pad = tokenizer.pad_token_id

    def _apply(self, logits: torch.Tensor, due: Sequence[bool]) -> torch.Tensor:
        logits = logits.clone()
        logits[:, self.eos] = -torch.inf
        logits[torch.tensor(due), self.eos] = torch.inf
        return logits

    def ours(
        self, positions: Sequence[int], counts: Sequence[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """What our scorer calls."""
        due = [n >= self.lengths[p] for p, n in zip(positions, counts, strict=True)]
        return self._apply(logits, due)

    def hflm(self, model: Any) -> Callable[..., torch.Tensor]:
        """A `generate` that looks rows up by their prompts."""
        original = type(model).generate

        def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            width = input_ids.shape[1]
            masks = kwargs["attention_mask"].bool()
            targets = [
                self.by_prompt[tuple(row[mask].tolist())]
                for row, mask in zip(input_ids, masks, strict=True)
            ]

            def fix(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
                return self._apply(logits, [ids.shape[1] - width >= n for n in targets])

            return original(model, input_ids=input_ids, logits_processor=[fix], **kwargs)

        return generate


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def compare(
    condition: Condition,
    bar: float,
    model: Any,
    tokenizer: Any,
    *,
    sizes: list[str],
    repetitions: int,
) -> Result:
    requests = [instance for item in condition.items for instance in item.instances]
    result = Result(condition.name, bar, len(condition.items))
    scorer = Scorer(model, tokenizer)
    method = "generate_until" if condition.kind == "generate" else "loglikelihood"
    fixed = FixedLengths(tokenizer, condition) if condition.kind == "generate" else None
    if fixed is not None:
        scorer.adjust = fixed.ours

    def run_hflm(size: str) -> Any:
        batch = size if size == "auto" else int(size)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        if fixed is not None:
            model.generate = fixed.hflm(model)
        seconds, answers = timed(lambda: getattr(lm, method)(requests, disable_tqdm=True))
        model.__dict__.pop("generate", None)
        result.hflm.setdefault(size, []).append(seconds)
        return answers

    def run_ours() -> Any:
        seconds, answers = timed(lambda: getattr(scorer, method)(requests, disable_tqdm=True))
        result.ours.append(seconds)
        return answers

    answers = run_ours()
    for size in sizes:
        if size == "auto" and condition.kind == "generate":
            continue  # its detection alone prefills 5 x 64 prompts of the model's full length
        theirs = run_hflm(size)
        run_ours()
        print(
            f"  {condition.name} batch {size}: {result.hflm[size]} ours {result.ours}", flush=True
        )
    result.agreement = agreement(condition.kind, answers, theirs)
    for _ in range(repetitions - 1):
        run_hflm(result.fastest)
        run_ours()
    print(f"  {condition.name}: {result.ratio:.1f} x  {result.agreement}", flush=True)
    return result


def agreement(kind: str, ours: list[Any], theirs: list[Any]) -> str:
    if kind == "generate":
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        return f"{same} of {len(ours)} texts equal"
    worst = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    return f"largest difference {worst:.1e} nats"


def table(results: list[Result], model: Any, arguments: argparse.Namespace) -> str:
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    config = model.config
    lines = [
        "# Scoring against lm-eval's HFLM",
        "",
        f"moegraft {moegraft.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads on {platform.machine()} ({os.cpu_count()} cores); "
        f"random OLMoE of {size:.0f} MiB in float32 ({config.num_hidden_layers} layers, hidden "
        f"{config.hidden_size}, {config.num_experts} experts, top {config.num_experts_per_tok}), "
        "experts implementation `eager` on both sides.",
        "",
        "    python benchmarks/scoring.py --data DIR --tokenizer TOKENIZER.json"
        + (f" --items {arguments.items}" if arguments.items else ""),
        "",
        "| condition | items | HFLM, s (batch) | moegraft, s | ratio | bar | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in results:
        all_sizes = ", ".join(f"{size}: {min(t):.1f}" for size, t in r.hflm.items())
        lines.append(
            f"| {r.condition} | {r.num_items} | {statistics.median(r.hflm[r.fastest]):.2f} "
            f"({r.fastest}; {all_sizes}) | {statistics.median(r.ours):.2f} | **{r.ratio:.1f}** | "
            f"{r.bar:g} | {r.agreement} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--items", type=int, help="items per condition (default: per condition)")
    parser.add_argument("--conditions", nargs="*", default=list(CASES))
    parser.add_argument("--batch-sizes", default="8,32,64")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    tokenizer = load_tokenizer(arguments.tokenizer)
    model = build_model(arguments.hidden, arguments.layers, arguments.experts, len(tokenizer))
    results = []
    for name in arguments.conditions:
        bar, num_items = CASES.get(name, (1.0, 32))
        condition = load_condition(
            name,
            tokenizer=tokenizer,
            data_dir=arguments.data,
            limit=arguments.items or num_items,
            chat_template=False,
        )
        sizes = arguments.batch_sizes.split(",")
        results.append(
            compare(
                condition, bar, model, tokenizer, sizes=sizes, repetitions=arguments.repetitions
            )
        )
    text = table(results, model, arguments)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
