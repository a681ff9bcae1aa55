"""One GPU: switching, scoring, generation and sweep overhead at OLMoE-1B-7B's real shapes.

    python benchmarks/gpu.py [--out benchmarks/gpu_HARDWARE_YYYYMM.md]

Host and donor are random bf16 weights made on the card (2 x 13.8 GB; nothing is read or written),
prompts are random ids. Under 8 minutes on a data-centre card; without a GPU it runs small on CPU.
Sections that need lm-eval, or continuous batching, say so where these are missing.
"""

import argparse
import importlib.util
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig, OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from make_checkpoint import make_config, write_small_files
from moegraft.evals.condition import Decoding, Pair
from moegraft.evals.generate import generations
from moegraft.evals.likelihood import likelihoods
from moegraft.evals.sampling import Stopper, Writer
from moegraft.evals.slots import Forward
from moegraft.families import FAMILIES
from moegraft.runtime import Patch, swapped
from moegraft.runtime.swap import slots
from switch import CONFIGURATIONS, commit, hardware, synchronize

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


@dataclass(frozen=True)
class Load:
    """How much work each section does."""

    shots: int
    """Tokens of the few-shot prefix that all questions share."""
    questions: int
    prompts: int
    new_tokens: int
    batch: int
    matrix: int
    """Side of the matrices, and a sixteenth of the MiB copied, that measure the card."""
    max_tokens: int
    repetitions: int


GPU = Load(900, 256, 256, 128, 64, 8192, 16384, 50)
CPU = Load(60, 8, 8, 8, 8, 512, 1024, 10)


def build(device: str, seed: int) -> OlmoeForCausalLM:
    """A random model on `device`, in evaluation mode."""
    sizes = make_config("full", many=False, family="olmoe")
    if device == "cpu":
        sizes |= {"hidden_size": 128, "intermediate_size": 64, "vocab_size": 1024}
        sizes |= {"num_hidden_layers": 4, "num_experts": 16, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4}
    known = {key: value for key, value in sizes.items() if key not in ("architectures",)}
    known["dtype"] = known.pop("torch_dtype")
    torch.manual_seed(seed)
    with torch.device(device):
        model = OlmoeForCausalLM._from_config(OlmoeConfig(**known), dtype=torch.bfloat16)
    model.set_experts_implementation("eager" if device == "cpu" else "grouped_mm")
    return model.eval().requires_grad_(False)


def tokenizer_for(model: nn.Module) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; ids beyond it are never decoded."""
    with tempfile.TemporaryDirectory() as folder:
        write_small_files(Path(folder), {"max_position_embeddings": 4096})
        return PreTrainedTokenizerFast.from_pretrained(folder)


class Resident:
    """A host and a donor that never were files, with the parts of `Host` that a sweep needs."""

    def __init__(self, device: str) -> None:
        self.model = build(device, 0)
        self.tokenizer = tokenizer_for(self.model)
        self.eos_ids: frozenset[int] = frozenset()
        self.donor = {n: slot.tensor for n, slot in slots(build(device, 1)).items()}

    def patches(self, configuration: str) -> list[Patch]:
        """Of one of the nine configurations; q/k norms move with attention."""
        names = set(configuration.split("+"))
        if "attention" in names:
            names.add("qk_norm")
        place = FAMILIES["olmoe"].place
        return [
            Patch(name, tensor)
            for name, tensor in self.donor.items()
            if configuration == "donor" or place(name).component in names
        ]

    @contextmanager
    def with_patches(self, patches: Sequence[Patch]) -> Iterator[nn.Module]:
        """As `Host.with_patches`."""
        with swapped(self.model, patches):
            yield self.model


class Tokens:
    """Counts the tokens that the model's body really computes."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        self._hook = model.model.layers[0].input_layernorm.register_forward_pre_hook(self._add)

    def _add(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.count += args[0].shape[0] * args[0].shape[1]

    def close(self) -> int:
        """Stop counting and return the number."""
        self._hook.remove()
        return self.count


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds and result."""
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - start, result


def limits(device: str, load: Load) -> tuple[float, float]:
    """Measured bf16 matrix rate in FLOP/s and memory traffic in B/s (read + write)."""
    side = load.matrix
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(side * 2**16, device=device, dtype=torch.uint8)
    best = []
    for work, call in ((2 * side**3, lambda: a @ b), (2 * big.numel(), big.clone)):
        call()
        best.append(work / min(timed(call)[0] for _ in range(5)))
    return best[0], best[1]


def switching(host: Resident, load: Load) -> list[str]:
    """Switch in and out of each configuration, with the GPU idle."""
    lines = [
        "| configuration | patches | in + out, ms (median) | p95 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in CONFIGURATIONS:
        patches = host.patches(name)

        def once(patches: list[Patch] = patches) -> None:
            with host.with_patches(patches):
                pass

        spent = sorted(1e3 * timed(once)[0] for _ in range(load.repetitions))
        p95 = spent[int(0.95 * (len(spent) - 1))]
        lines.append(f"| {name} | {len(patches)} | {statistics.median(spent):.2f} | {p95:.2f} |")
    return lines


def choices(load: Load, vocab: int) -> list[Pair]:
    """Four choices for each question, behind one few-shot prefix, as in ARC 5-shot."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, min(vocab, 250)) for _ in range(count))

    shots = ids(load.shots)
    asked = [shots + ids(rng.randint(30, 90)) for _ in range(load.questions)]
    return [Pair(question, ids(rng.randint(3, 12))) for question in asked for _ in range(4)]


@torch.no_grad()
def one_by_one(model: Any, pairs: Sequence[Pair], batch: int) -> list[float]:
    """One padded row per choice, as lm-eval asks for it: what HFLM computes."""
    found = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].context))
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        rows = [pairs[i].context + pairs[i].continuation for i in chosen]
        ids = torch.ones((len(rows), max(map(len, rows)) - 1), dtype=torch.long)
        for r, row in enumerate(rows):
            ids[r, : len(row) - 1] = torch.tensor(row[:-1])
        logits = model(ids.to(model.device)).logits
        for r, i in enumerate(chosen):
            start, rest = len(pairs[i].context) - 1, pairs[i].continuation
            part = logits[r, start : start + len(rest)].float().log_softmax(-1)
            found[i] = part.gather(1, torch.tensor(rest, device=part.device)[:, None]).sum().item()
    return found


def scoring(host: Resident, load: Load, flops: float) -> list[str]:
    """Log-likelihoods: shared prefixes against one prompt per choice."""
    model, pairs = host.model, choices(load, host.model.config.vocab_size)
    ways: dict[str, Callable[[], Any]] = {
        "moegraft": lambda: dict(likelihoods(Forward(model), pairs, load.max_tokens)),
        f"plain, batch {load.batch}": lambda: one_by_one(model, pairs, load.batch),
    }
    if HAS_LM_EVAL:
        ways[f"HFLM, batch {load.batch}"] = lambda: hflm(host, load, pairs)
    lines = ["| way | s | choices/s | tokens computed | tokens/s | of matrix rate |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    answers = {}
    for name, call in ways.items():
        timed(lambda: dict(likelihoods(Forward(model), pairs[:64], load.max_tokens)))
        counter = Tokens(model)
        seconds, answers[name] = timed(call)
        count = counter.close()
        share = 2 * active_parameters(model) * count / seconds / flops
        lines.append(
            f"| {name} | {seconds:.2f} | {len(pairs) / seconds:.0f} | {count} | "
            f"{count / seconds:.0f} | {share:.1%} |"
        )
    ours = [answers["moegraft"][i].logprob for i in range(len(pairs))]
    plain = answers[f"plain, batch {load.batch}"]
    apart = statistics.mean(abs(a - b) for a, b in zip(ours, plain, strict=True))
    lines += ["", f"Mean difference to plain: {apart:.3f} nats (bf16 noise; float32: below 1e-4)."]
    return lines if HAS_LM_EVAL else [*lines, "", "HFLM: lm-eval is not installed here."]


def hflm(host: Resident, load: Load, pairs: Sequence[Pair]) -> Any:
    """The same requests through lm-eval's own model class."""
    from lm_eval.models.huggingface import HFLM

    kind: Any = HFLM  # its constructor hides behind a registry's wrapper
    lm = kind(pretrained=host.model, tokenizer=host.tokenizer, batch_size=load.batch)
    asked = [(("", str(i)), list(p.context), list(p.continuation)) for i, p in enumerate(pairs)]
    return lm._loglikelihood_tokens(asked, disable_tqdm=True)


def active_parameters(model: Any) -> int:
    """Parameters that work on one token, embedding excluded."""
    config = model.config
    inactive = 1 - config.num_experts_per_tok / config.num_experts
    names = dict(model.named_parameters())
    experts = sum(p.numel() for n, p in names.items() if ".experts." in n)
    outer = names["model.embed_tokens.weight"].numel() + names["lm_head.weight"].numel()
    return sum(p.numel() for p in names.values()) - outer - int(inactive * experts)


def generating(host: Resident, load: Load, bandwidth: float) -> list[str]:
    """Greedy text of a fixed length: our engine, `generate`, `generate_batch`."""
    rng = random.Random(1)
    prompts = [
        tuple(rng.randrange(2, 250) for _ in range(rng.randint(60, 160)))
        for _ in range(load.prompts)
    ]
    weights = sum(p.numel() * p.element_size() for p in host.model.parameters())
    ways: dict[str, Callable[[], int]] = {
        "moegraft": lambda: ours(host, load, prompts),
        f"generate, batch {load.batch}": lambda: padded(host.model, load, prompts),
        "generate_batch": lambda: continuous(host.model, load, prompts),
    }
    lines = ["| way | s | new tokens/s | weights read at | of bandwidth |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for name, call in ways.items():
        steps = _Steps(host.model)
        try:
            seconds, count = timed(call)
        except (RuntimeError, ValueError, ImportError, AttributeError, TypeError) as error:
            if name != "generate_batch":  # whose kernels are missing on some machines
                raise
            lines.append(f"| {name} | does not run: {str(error).splitlines()[0][:90]} | | | |")
            continue
        finally:
            passes = steps.close()
        rate = weights * passes / seconds
        lines.append(
            f"| {name} | {seconds:.2f} | {count / seconds:.0f} | {rate / 1e9:.2f} GB/s | "
            f"{rate / bandwidth:.1%} |"
        )
    return lines


class _Steps(Tokens):
    """Counts forward passes."""

    def _add(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.count += 1


def ours(host: Resident, load: Load, prompts: Sequence[tuple[int, ...]]) -> int:
    """New tokens written by moegraft's engine."""
    writer = Writer(Stopper(host.tokenizer, (), ()), Decoding(load.new_tokens))
    answers = generations(
        Forward(host.model),
        writer,
        prompts,
        [0] * len(prompts),
        max_rows=4 * load.batch,
        max_tokens=load.max_tokens,
    )
    return sum(answer.num_tokens for _, answer in answers)


def padded(model: Any, load: Load, prompts: Sequence[tuple[int, ...]]) -> int:
    """New tokens written by `generate` on left-padded batches, sorted by length."""
    ranked = sorted(prompts, key=len)
    settings = generation_settings(load)
    count = 0
    for first in range(0, len(ranked), load.batch):
        rows = ranked[first : first + load.batch]
        width = max(map(len, rows))
        ids = torch.tensor([[1] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
        )
        count += out[:, width:].numel()
    return count


def continuous(model: Any, load: Load, prompts: Sequence[tuple[int, ...]]) -> int:
    """New tokens written by continuous batching."""
    asked = [list(prompt) for prompt in prompts]
    found = model.generate_batch(inputs=asked, generation_config=generation_settings(load))
    return sum(len(output.generated_tokens) for output in found.values())


def generation_settings(load: Load) -> GenerationConfig:
    """Greedy, exactly `new_tokens` long."""
    return GenerationConfig(
        max_new_tokens=load.new_tokens,
        min_new_tokens=load.new_tokens,
        do_sample=False,
        pad_token_id=1,
        eos_token_id=-1,
    )


def sweeping(host: Resident, load: Load) -> list[str]:
    """Nine configurations through swaps, against nine times the host alone."""
    pairs = choices(load, host.model.config.vocab_size)

    def score() -> None:
        dict(likelihoods(Forward(host.model), pairs, load.max_tokens))

    def sweep() -> None:
        for name in CONFIGURATIONS:
            with host.with_patches(host.patches(name)):
                score()

    score()
    alone = timed(lambda: [score() for _ in CONFIGURATIONS])[0]
    swept = timed(sweep)[0]
    return [
        f"Nine configurations on {len(pairs)} choices: {swept:.2f} s; nine times the host alone: "
        f"{alone:.2f} s; overhead {swept / alone - 1:+.1%} (planning and row files not included)."
    ]


def peak() -> str:
    """Peak memory since the last call."""
    if not torch.cuda.is_available():
        return "not measured on CPU"
    text = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    torch.cuda.reset_peak_memory_stats()
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = given.device
    load = CPU if device == "cpu" else GPU
    start = time.perf_counter()
    flops, bandwidth = limits(device, load)
    host = Resident(device)
    numel = sum(p.numel() for p in host.model.parameters())
    lines = [
        "# On one GPU" if device != "cpu" else "# The GPU benchmark, small on a CPU",
        "",
        "    python benchmarks/gpu.py",
        "",
        f"{hardware(device)}; commit {commit()}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Host and donor: random bf16 OLMoE, {numel / 1e6:.1f} million "
        f"parameters each, {active_parameters(host.model) / 1e6:.1f} million active outside "
        f"the embeddings. Measured limits: {flops / 1e12:.2f} TFLOP/s in a bf16 matrix product, "
        f"{bandwidth / 1e9:.0f} GB/s copying.",
    ]
    sections: list[tuple[str, Callable[[], list[str]]]] = [
        ("Switching", lambda: switching(host, load)),
        ("Scoring choices, few-shot prefix shared", lambda: scoring(host, load, flops)),
        ("Generation, greedy", lambda: generating(host, load, bandwidth)),
        ("Sweep overhead", lambda: sweeping(host, load)),
    ]
    memory = [f"loaded {peak()}"]
    for title, section in sections:
        lines += ["", f"## {title}", "", *section()]
        memory.append(f"{title.split(',')[0].lower()} {peak()}")
        print(f"{title}: after {time.perf_counter() - start:.0f} s", flush=True)
    lines += ["", "## Peak memory", "", "; ".join(memory) + "."]
    lines += ["", f"All in {time.perf_counter() - start:.0f} s."]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
