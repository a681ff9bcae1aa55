"""Run one stage's training on a live branch: read its data, choose its length, call its trainer."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from moegraft.bar.reach import Reach
from moegraft.bar.stages import StageRecipe
from moegraft.errors import TrainDataError
from moegraft.train.chats import pack_chats, read_chats
from moegraft.train.data import read_preferences, read_tasks
from moegraft.train.dpo import train_dpo
from moegraft.train.grpo import train_grpo
from moegraft.train.lm import train_lm
from moegraft.train.loop import OnStep, Prepare, read_metrics
from moegraft.train.options import TrainOptions
from moegraft.train.programs import Limits
from moegraft.train.text import Blocks, pack, read_documents
from moegraft.train.verifiers import check_tasks

_READERS: dict[str, Callable[[str], Iterable[Any]]] = {
    "mid": read_documents,
    "sft": read_chats,
    "dpo": read_preferences,
    "rl": read_tasks,
}


@dataclass(frozen=True, slots=True)
class Job:
    """A stage that is about to be trained."""

    stage: StageRecipe
    model: Any
    tokenizer: Any
    work: Path
    """The training's own folder: metrics, checkpoints."""
    prepare: Prepare
    on_step: OnStep | None
    how: Mapping[str, Any]
    """Seed and placement, for `TrainOptions`."""
    reach: Callable[[Blocks], Reach] | None = None
    """For appended experts: how much of a text reaches them."""
    routers: Mapping[str, int] = field(default_factory=dict)
    """Live names of the routers, and their layers."""
    silent: bool = False
    """Whether appended experts start silent."""

    @property
    def length(self) -> int:
        """Tokens of a block or a record: the stage's, or the published, or what the model takes."""
        most = int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)
        return self.stage.length or min(self.stage.preset.length, most)


def check_data(stage: StageRecipe) -> None:
    """Read the first record of each of a stage's local sources, before hours go into others.

    Raises:
        TrainDataError: a source is missing, empty or of another form; names the stage.
    """
    read = _READERS[stage.stage]
    for source in (*stage.data, *stage.general):
        if not Path(source).expanduser().exists() and source.count("/") == 1:
            continue  # a data set on the Hub
        try:
            first = next(iter(read(source)), None)
            if first is None:
                raise TrainDataError(f"{source}: holds no record")
            if stage.stage == "rl":
                check_tasks([(first["kind"], first["gold"])])
        except TrainDataError as error:
            raise TrainDataError(f"stage {stage.stage}: {error}") from None


def train_stage(job: Job) -> dict[str, Any]:
    """Train, or go on where an interrupted training stopped.

    Returns:
        What the manifest records: steps, tokens, data, and the last loss or reward.

    Raises:
        TrainDataError: the domain has no data, or it cannot be read.
        TrainingError: the loss or a gradient is not finite; the last checkpoint stays.
    """
    kinds = {"mid": _blocks, "sft": _blocks, "dpo": _preferences, "rl": _rewards}
    found = kinds[job.stage.stage](job)
    rows = read_metrics(job.work)
    last = rows[-1]
    return {
        "steps": last["step"],
        "tokens": int(last["tokens"]),
        "seconds": last["seconds"],
        "metrics": {"loss": round(float(last["loss"]), 6)},
        **found,
    }


def _blocks(job: Job) -> dict[str, Any]:
    """Mid-training on packed text, or finetuning on packed chats."""
    stage = job.stage
    read = _read_text if stage.stage == "mid" else _read_chats
    sources = {"domain": read(job, stage.data)}
    if stage.general:
        sources["general"] = read(job, stage.general)
    num_steps, batch = plan_blocks(stage, {n: b.num_tokens for n, b in sources.items()}, job.length)
    share = stage.general_share
    weights = None if share is None else {"domain": 1 - share, "general": share}
    options = stage.options(num_steps, batch, **job.how)
    before = job.reach(sources["domain"]) if job.reach else None
    rates = _rates_of_rows(job, before, num_steps)
    train_lm(
        job.model,
        sources,
        options,
        work=job.work,
        weights=weights,
        router=stage.router_loss,
        prepare=partial(_prepare, job, rates) if rates else job.prepare,
        on_step=job.on_step,
    )
    data = [
        {"part": name, "tokens": blocks.num_tokens, "sha256": blocks.digest()}
        for name, blocks in sources.items()
    ]
    about = _about(options, length=job.length, router=stage.router_loss)
    about |= {"router_rates": [*rates.values()]} if rates else {}
    found = {"data": _named(stage, data), "options": about}
    found |= {} if share is None else {"general_share": share}
    if job.reach is None or before is None:
        return found
    after = job.reach(sources["domain"])
    shares = {"before": before.shares, "after": after.shares}
    return {**found, "reached": {when: [*own.values()] for when, own in shares.items()}}


def _rates_of_rows(job: Job, reach: Reach | None, num_steps: int) -> dict[str, float]:
    """Learning rates of the routers, by name, that are not the stage's."""
    shifts = reach.shifts if reach is not None and job.silent else {}
    rates = {
        name: job.stage.rate_of_rows(num_steps, shifts.get(layer, 0.0))
        for name, layer in job.routers.items()
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def _prepare(job: Job, rates: Mapping[str, float], model: Any, optimizer: Any) -> None:
    """The job's own preparation, and learning rates of their own for routers."""
    job.prepare(model, optimizer)
    for name, rate in rates.items():
        router = model.get_parameter(name)
        for group in [*optimizer.param_groups]:
            if any(one is router for one in group["params"]):
                group["params"] = [one for one in group["params"] if one is not router]
                optimizer.add_param_group({**group, "params": [router], "lr": rate})


def plan_blocks(stage: StageRecipe, num_tokens: Mapping[str, int], length: int) -> tuple[int, int]:
    """Steps, and blocks a step, for sources of so many tokens.

    One pass over the domain comes with as much of the general mix as its share says. A batch that
    the stage leaves open can be divided among the processes.
    """
    domain, everything = num_tokens["domain"], sum(num_tokens.values())
    share = 1 - domain / everything if stage.general_share is None else stage.general_share
    epochs = stage.preset.epochs if stage.epochs is None else stage.epochs
    wanted = stage.tokens or round(epochs * domain / (1 - share))
    batch = stage.batch_of(wanted, length)
    if stage.batch is None:
        batch += -batch % int(os.environ.get("WORLD_SIZE", "1"))
    return stage.steps or max(1, round(wanted / (batch * length))), batch


def _read_text(job: Job, sources: Sequence[str]) -> Blocks:
    documents = chain.from_iterable(read_documents(source) for source in sources)
    return pack(documents, job.tokenizer, job.length, max_tokens=job.stage.tokens)


def _read_chats(job: Job, sources: Sequence[str]) -> Blocks:
    chats = chain.from_iterable(read_chats(source) for source in sources)
    return pack_chats(chats, job.tokenizer, job.length, max_tokens=job.stage.tokens)


def _preferences(job: Job) -> dict[str, Any]:
    stage = job.stage
    records, data = _records(stage)
    batch = stage.batch or max(1, min(stage.preset.batch_tokens, len(records) // 50))
    options = stage.options(_steps(stage, len(records), batch), batch, **job.how)
    train_dpo(
        job.model,
        job.tokenizer,
        records,
        options,
        work=job.work,
        beta=stage.beta,
        max_length=job.length,
        prepare=job.prepare,
        on_step=job.on_step,
    )
    return {"data": data, "options": _about(options, length=job.length, beta=stage.beta)}


def _rewards(job: Job) -> dict[str, Any]:
    stage, grpo = job.stage, job.stage.grpo
    records, data = _records(stage)
    batch = stage.batch or stage.preset.batch_tokens
    steps = _steps(stage, len(records) * grpo.num_generations, batch)
    steps = -(-steps // grpo.mini_batches) * grpo.mini_batches
    options = stage.options(steps, batch, **job.how)
    reward = train_grpo(
        job.model,
        job.tokenizer,
        records,
        options,
        work=job.work,
        grpo=grpo,
        limits=Limits(seconds=stage.seconds),
        prepare=job.prepare,
        on_step=job.on_step,
    )
    rows = read_metrics(job.work)
    return {
        "data": data,
        "options": _about(options, grpo=grpo),
        "rollouts": steps * batch,
        "reward": round(reward, 6),
        **_learning(rows, grpo.reward),
        "verifier_failures": sum(row.get("verifier_failures", 0) for row in rows),
    }


def _learning(rows: Sequence[Mapping[str, Any]], unit: float) -> dict[str, float]:
    """Mean reward over the first tenth, and the share of groups whose rewards are all alike."""
    sampled = [row for row in rows if "reward" in row]
    first = sampled[: max(1, round(0.1 * len(sampled)))]
    alike = [float(row["frac_reward_zero_std"]) for row in sampled]
    return {
        "reward_at_first": round(sum(float(row["reward"]) for row in first) / len(first) / unit, 6),
        "groups_alike": round(sum(alike) / len(alike), 6),
    }


def _steps(stage: StageRecipe, num_records: int, batch: int) -> int:
    if stage.steps is not None:
        return stage.steps
    epochs = stage.preset.epochs if stage.epochs is None else stage.epochs
    return max(1, math.ceil(epochs * num_records / batch))


def _records(stage: StageRecipe) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Domain and general records together, and what the manifest says about them."""
    read = _READERS[stage.stage]
    found: list[dict[str, Any]] = []
    about = []
    for part, sources in (("domain", stage.data), ("general", stage.general)):
        own = [record for source in sources for record in read(source)]
        if sources and not own:
            raise TrainDataError(f"{part} data: {', '.join(sources)}: no record")
        if own:
            digest = sha256(repr(own).encode()).hexdigest()
            about.append({"part": part, "records": len(own), "sha256": digest})
        found += own
    return found, _named(stage, about)


def _named(stage: StageRecipe, about: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`about`, with the names of files (without their folders) or data sets."""
    names = {"domain": stage.data, "general": stage.general}
    return [
        {
            **entry,
            "sources": [
                Path(n).name if Path(n).expanduser().exists() else n for n in names[entry["part"]]
            ],
        }
        for entry in about
    ]


def _about(options: TrainOptions, **more: Any) -> dict[str, Any]:
    """The settings, without those that say where and how often."""
    from dataclasses import asdict, is_dataclass

    left_out = {"use_cpu", "log_every", "save_every", "eval_every", "micro_batch", "num_steps"}
    plain = {k: asdict(v) if is_dataclass(v) else v for k, v in more.items()}  # pyright: ignore[reportArgumentType]
    return {k: v for k, v in asdict(options).items() if k not in left_out} | plain
