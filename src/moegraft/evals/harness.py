"""The one door to lm-evaluation-harness: its tasks, ours and the user's become conditions.

`load_condition("paper_arc_challenge/5-shot", tokenizer=host.tokenizer)` finds the task, reads its
data (from the Hub or from local JSON lines), renders every prompt once, and turns it into token
ids once; the result is scored for any number of configurations by `judge.score_items`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from moegraft.errors import EvalDataError, UnknownTaskError
from moegraft.evals.condition import (
    Condition,
    Decoding,
    canonical_order,
    doc_hashes,
    shots,
    split_name,
)
from moegraft.evals.data import resolve_data
from moegraft.evals.prompts import Prompter, metadata

TASKS = Path(__file__).parent / "tasks"
"""Our own task files."""

_DEFAULT_MAX_GEN_TOKS = 256
_SAMPLER_SEED = 1234
_log = logging.getLogger(__name__)


def load_condition(
    name: str,
    *,
    tokenizer: Any,
    data_dir: str | Path | None = None,
    include: Sequence[str | Path] = (),
    limit: int | None = None,
    seed: int = 0,
    chat_template: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    repeats: int | None = None,
    temperature: float | None = None,
    max_gen_toks: int | None = None,
    training: bool = False,
) -> Condition:
    """Load one task under one prompting strategy.

    Args:
        name: `task`, `task/N-shot`, `task/PROMPTING` where the task's own file names that
            prompting, or a path to a YAML file, again with an optional prompting.
        tokenizer: the host's; it renders the chat template and makes the token ids.
        data_dir: a folder with one sub-folder per data set (`gsm8k/test.jsonl`,
            `boolq/validation.jsonl`, `arc_challenge/test.jsonl`) that replaces the Hub.
        include: more folders with task files in lm-eval's format.
        limit: render only the first `limit` items of the canonical order.
        seed: of the canonical order and of sampling.
        chat_template: wrap prompts in the tokenizer's chat template, few-shots as turns.
        chat_template_kwargs: passed to the template.
        system_prompt: a system message before everything else.
        repeats: generations per item, averaged; default: what the task says.
        temperature: sampling temperature; 0 = greedy; default: what the task says.
        max_gen_toks: token budget of a generation; default: what the task says.
        training: render the task's training records instead of those that are scored, in the same
            form, to train on.

    Raises:
        EvalDataError: unknown task, missing data, or settings that contradict the task.
    """
    task, notes = _load_task(name, data_dir, tuple(include), training)
    config = task.config
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise EvalDataError(
            f"{name}: the host's tokenizer has no chat template; pass --no-chat-template"
        )
    repeats = int(config.repeats or 1) if repeats is None else repeats
    kind = "generate" if task.OUTPUT_TYPE == "generate_until" else "choose"
    decoding = _decoding(task, seed, temperature, max_gen_toks) if kind == "generate" else None
    _check_repeats(name, repeats, decoding)
    docs = [dict(doc) for doc in task.eval_docs]
    hashes = doc_hashes(docs)
    chosen = canonical_order(hashes, seed)[:limit]
    prompter = Prompter(task, tokenizer, chat_template, chat_template_kwargs or {}, system_prompt)
    items = prompter.items([docs[i] for i in chosen], [hashes[i] for i in chosen])
    meta = metadata(task)
    settings = {
        "task": config.task,
        "version": str(task.VERSION),
        "kind": kind,
        "num_fewshot": int(config.num_fewshot or 0),
        "chat_template": chat_template,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
        "system_prompt": system_prompt,
        "repeats": repeats,
        "decoding": None if decoding is None else _as_dict(decoding),
        "extract": meta.get("extract"),
        "filters": config.filter_list,
        "metrics": _plain(config.metric_list),
    }
    primary = _primary_metric(task, meta)
    return Condition(
        name=_public_name(name, config.task),
        task=task,
        kind=kind,
        items=items,
        num_total=len(docs),
        settings=settings,
        primary=primary,
        decoding=decoding,
        repeats=repeats,
        binary=repeats == 1 and primary in ("exact_match", "acc", "acc_norm", "acc_bytes"),
        extract=meta.get("extract"),
        gold_format=meta.get("gold_format"),
        notes=notes,
    )


def count_items(
    name: str, *, data_dir: str | Path | None = None, include: Sequence[str | Path] = ()
) -> int:
    """How many items a task has; reads its data, renders nothing. Errors as `load_condition`."""
    return len(_load_task(name, data_dir, tuple(include))[0].eval_docs)


def list_tasks() -> list[str]:
    """Names of the tasks that moegraft brings along."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


# --- tasks ------------------------------------------------------------------------------------


@cache
def _manager(include: tuple[str, ...], defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    # Indexing lm-eval's own 14,000 entries takes 8 s, so that happens only for their names.
    return TaskManager(include_path=[*include], include_defaults=defaults)


def _load_task(
    name: str,
    data_dir: str | Path | None,
    include: tuple[str | Path, ...],
    training: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    task_name, prompting = split_name(name)
    manager, key = _find(task_name, tuple(str(p) for p in include))
    if manager is None and prompting is not None:  # a name may hold a slash itself
        manager, key = _find(name, tuple(str(p) for p in include))
        prompting = None if manager is not None else prompting
    if manager is None:
        raise UnknownTaskError(
            f"no task {task_name!r}: neither ours ({', '.join(list_tasks())}), nor lm-eval's, "
            "nor a YAML file"
        )
    entry = manager.task_index[key]
    if entry.kind.name in ("GROUP", "TAG"):
        members = entry.tags or (entry.cfg or {}).get("task", [])
        raise EvalDataError(f"{key!r} is a group of tasks; name its members instead: {members}")
    overrides: dict[str, Any] = {}
    if prompting is not None:
        overrides |= _prompting_overrides(name, prompting, entry.cfg or {})
    if training:
        overrides |= _training_overrides(name, entry.cfg or {})
    overrides |= resolve_data(key, {**(entry.cfg or {}), **overrides}, data_dir)
    return _build(manager, key, overrides)


def _find(name: str, include: tuple[str, ...]) -> tuple[Any, str]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise EvalDataError(f"{name}: no such task file")
        manager = _manager((str(path.parent.resolve()),), False)
        for key, entry in manager.task_index.items():
            if entry.yaml_path and Path(entry.yaml_path).resolve() == path.resolve():
                return manager, key
        raise EvalDataError(f"{name}: not a task in lm-eval's format (it needs `task:`)")
    for defaults in (False, True):
        manager = _manager((str(TASKS), *include), defaults)
        if name in manager.task_index:
            return manager, name
    return None, name


def _prompting_overrides(name: str, prompting: str, config: Mapping[str, Any]) -> dict[str, Any]:
    num_fewshot = shots(prompting)
    if num_fewshot is not None:
        return {"num_fewshot": num_fewshot}
    own = (config.get("metadata") or {}).get("prompting")
    if prompting != own:
        known = f"N-shot or {own}" if own else "N-shot"
        raise EvalDataError(f"{name}: unknown prompting {prompting!r}, expected {known}")
    return {}


def _training_overrides(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Score the training split, so that its records are rendered."""
    split = config.get("training_split")
    if not split:
        raise EvalDataError(f"{name}: the task names no training split to train on")
    return {"test_split": split, "validation_split": None, "fewshot_split": None}


def _build(manager: Any, key: str, overrides: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    from datasets.exceptions import DatasetsError
    from jinja2 import UndefinedError

    spec = {"group": "moegraft", "task": [{"task": key, **overrides}]}
    try:
        with _no_split_bars():
            task = manager.load([spec])["tasks"][key]
    except UndefinedError as error:
        raise EvalDataError(f"{key}: a record lacks a field: {error}") from None
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EvalDataError(
            f"{key}: cannot load its data ({reason}); name a folder with --data, or go online"
        ) from error
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise EvalDataError(f"{key}: a perplexity task has no score per item")
    return task, _fix_fewshots(task)


@contextmanager
def _no_split_bars() -> Iterator[None]:
    """Keep the bars of `datasets` off the terminal; downloads have the Hub's own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _fix_fewshots(task: Any) -> tuple[str, ...]:
    """Draw few-shot examples once instead of anew for each document.

    lm-eval draws from one running generator, so a prompt would depend on which items come before
    it, and no prefix could be shared.
    """
    from lm_eval.api.samplers import ContextSampler, FirstNSampler

    sampler = getattr(task, "sampler", None)
    count = int(task.config.num_fewshot or 0)
    if not count or sampler is None or type(sampler) is not ContextSampler:
        return ()
    pool = list(sampler.fewshot_docs())
    drawn = ContextSampler(pool, rnd=_SAMPLER_SEED).sample(min(count + 1, len(pool)))
    task.sampler = FirstNSampler(list(drawn))
    return (
        f"{task.config.task}: the same {count} examples stand before every item (lm-eval draws "
        f"them anew per document; here once, with seed {_SAMPLER_SEED})",
    )


# --- settings ---------------------------------------------------------------------------------


def _primary_metric(task: Any, meta: Mapping[str, Any]) -> str:
    if "primary" in meta:
        return str(meta["primary"])
    if meta.get("extract"):
        return "exact_match"
    names = list(task.aggregation())
    if not names:
        raise EvalDataError(f"{task.config.task}: the task names no metric")
    return str(names[0])


def _decoding(
    task: Any, seed: int, temperature: float | None, max_gen_toks: int | None
) -> Decoding:
    given = dict(task.config.generation_kwargs or {})
    until = given.get("until") or []
    sampled = bool(given.get("do_sample", float(given.get("temperature") or 0) > 0))
    own = float(given.get("temperature") or 1.0) if sampled else 0.0
    budget = max_gen_toks or given.get("max_gen_toks") or given.get("max_new_tokens")
    if budget is None:
        _log.info("%s: no max_gen_toks, using %s", task.config.task, _DEFAULT_MAX_GEN_TOKS)
    return Decoding(
        max_new_tokens=int(budget or _DEFAULT_MAX_GEN_TOKS),
        stop=tuple([until] if isinstance(until, str) else until),
        temperature=own if temperature is None else temperature,
        top_p=float(given.get("top_p") or 1.0),
        top_k=int(given.get("top_k") or 0),
        seed=seed,
    )


def _check_repeats(name: str, repeats: int, decoding: Decoding | None) -> None:
    if repeats < 1:
        raise EvalDataError(f"{name}: repeats must be at least 1, got {repeats}")
    if repeats > 1 and decoding is None:
        raise EvalDataError(
            f"{name}: its choices are compared by likelihood, which {repeats} repeats would not "
            "change; leave it out of a run that samples"
        )
    if repeats > 1 and decoding is not None and decoding.temperature == 0:
        raise EvalDataError(
            f"{name}: {repeats} repeats without sampling would all be equal; set a temperature"
        )


def _as_dict(decoding: Decoding) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(decoding) | {"stop": list(decoding.stop)}


def _plain(metrics: Any) -> list[dict[str, str]]:
    return [{k: str(v) for k, v in metric.items()} for metric in metrics or []]


def _public_name(name: str, task: str) -> str:
    head, prompting = split_name(name)
    if head.endswith((".yaml", ".yml")):
        return task if prompting is None else f"{task}/{prompting}"
    return name
