"""Train a small OLMoE on distinct domains: a donor whose experts specialise, for XPERT.

    python benchmarks/xpert_donor.py DATA --out DONOR            # DATA holds DOMAIN.jsonl files
    python benchmarks/xpert_donor.py DATA --out DONOR --steps 50 # a try

Each file is a domain; a record is {"text": ...}. Every domain gives the same number of tokens,
however large its file is; a tenth of its documents, chosen by their hash, is held out
(`moegraft.train.text.is_held_out`). Interrupted, the same command goes on. The folder holds the
checkpoint with its tokenizer, and `donor.json`: losses by domain, and how far routing depends on
the domain.
"""

import argparse
import itertools
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, OlmoeForCausalLM

from moegraft.families.find import find_family
from moegraft.nano import pretrain
from moegraft.nano import tokenizer as tokenizers
from moegraft.runtime.hooks import observed
from moegraft.runtime.probe import RoutingCounts
from moegraft.train.lm import train_lm
from moegraft.train.options import TrainOptions
from moegraft.train.router_loss import RouterLoss
from moegraft.train.text import Blocks, is_held_out, pack, read_documents

HELD_OUT = 0.1
LENGTH = 128
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    work = args.out.with_name(args.out.name + ".work")
    tokenizer = donor_tokenizer(args.data, args.vocab, work / "tokenizer")
    training, held = domain_blocks(args.data, tokenizer)
    model = pretrain.new_model(tokenizer, 0, **SIZES)
    options = TrainOptions(
        num_steps=args.steps,
        batch=args.batch,
        learning_rate=args.rate,
        warmup_steps=max(1, args.steps // 15),
        scheduler="cosine",
        final_rate=0.1,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        log_every=10,
        save_every=50,
        eval_every=100,
    )
    began = time.perf_counter()
    result = train_lm(
        model,
        training,
        options,
        work=work / "training",
        weights=dict.fromkeys(training, 1.0),
        validation=held,
        router=RouterLoss(balance=0.01),
        on_step=lambda step, num: step % 10 or logging.info("step %d of %d", step, num),
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_tokens": result.num_tokens,
        "tokens_by_domain": {name: blocks.num_tokens for name, blocks in training.items()},
        "validation": result.validation,
        "seconds_of_last_call": round(time.perf_counter() - began),
        "routing": specialisation(model, held),
    }
    (args.out / "donor.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def documents(file: Path, held_out: bool) -> list[str]:
    """The documents of one side of a domain, in the order of the file."""
    return [text for text in read_documents(file) if is_held_out(text, HELD_OUT) is held_out]


def domain_files(data: Path) -> list[Path]:
    files = sorted(data.glob("*.jsonl"))
    if len(files) < 2:
        raise SystemExit(f"{data}: expected a .jsonl file per domain")
    return files


def donor_tokenizer(data: Path, vocab: int, folder: Path):
    """A byte-level BPE learnt from as much text of every domain."""
    if not folder.exists():
        texts = [documents(file, False) for file in domain_files(data)]
        least = min(sum(map(len, domain)) for domain in texts)
        equal = [head(domain, least) for domain in texts]
        tokenizers.train(itertools.chain(*equal), vocab).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def head(texts: list[str], num_characters: int) -> list[str]:
    ends = itertools.accumulate(map(len, texts))
    return [text for text, end in zip(texts, ends, strict=True) if end <= num_characters]


def domain_blocks(data: Path, tokenizer) -> tuple[dict[str, Blocks], dict[str, Blocks]]:
    """Training and held-out blocks by domain; training sets are cut to the smallest one's size."""
    files = domain_files(data)
    training = {f.stem: pack(documents(f, False), tokenizer, LENGTH) for f in files}
    least = min(map(len, training.values()))
    training = {n: Blocks(b.ids[:least], b.positions[:least]) for n, b in training.items()}
    held = {f.stem: pack(documents(f, True), tokenizer, LENGTH) for f in files}
    fewest = min(96, *map(len, held.values()))
    return training, {n: Blocks(b.ids[:fewest], b.positions[:fewest]) for n, b in held.items()}


@torch.no_grad()
def specialisation(model: OlmoeForCausalLM, held: dict[str, Blocks]) -> dict[str, object]:
    """How much the choice of experts depends on the domain."""
    family, counts = find_family(model.config.to_dict()), RoutingCounts()
    model.eval()
    for name, blocks in held.items():
        with observed(model, family, counts.observer(name)):
            ids, positions = blocks.ids.long(), blocks.positions.long()
            model.model(input_ids=ids, position_ids=positions, use_cache=False)
    profile = counts.profile()
    shares = profile.counts / profile.counts.sum(-1, keepdims=True)  # domain layer expert
    mean = shares.mean(0)
    apart = [
        float(np.abs(shares[a] - shares[b]).sum(-1).mean() / 2)
        for a, b in itertools.combinations(range(len(shares)), 2)
    ]
    information = (shares * np.log(shares.clip(1e-12) / mean.clip(1e-12))).sum(-1).mean(0)
    return {
        "total_variation_between_domains": round(float(np.mean(apart)), 4),
        "information_bits_by_layer": [round(float(x / np.log(2)), 4) for x in information],
        "largest_share_of_an_expert": round(float(mean.max()), 4),
        "smallest_share_of_an_expert": round(float(mean.min()), 4),
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
