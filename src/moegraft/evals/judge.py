"""From what a model answered to item rows: extraction, lm-eval's filters and metrics, flags.

`score_items(scorer, condition, items)` is what a sweep calls: it yields one row per item as soon
as that item is finished, in no particular order, so that each row can be written at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, Protocol, runtime_checkable

from moegraft.errors import EvalDataError
from moegraft.evals.command import Command
from moegraft.evals.condition import Condition, Decoding, Item, Pair
from moegraft.evals.extract import extract, same_answer

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Result of one `Pair`."""

    logprob: float
    """Sum over the continuation's tokens, in nats."""
    is_greedy: bool
    """Whether greedy decoding would have written exactly this continuation."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated text."""

    text: str
    """Up to the first stop string or end-of-sequence token, neither included."""
    num_tokens: int
    """Tokens generated, the one that ended it included."""
    truncated: bool
    """The token budget ended it."""
    looped: bool
    """It ends in a repetition loop."""


@runtime_checkable
class Answers(Protocol):
    """What `score_items` needs of a scorer; `scorer.Scorer` is one."""

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Yield (position, result) in any order."""
        ...

    def generations(
        self, prompts: Sequence[tuple[int, ...]], decoding: Decoding, repeat: Sequence[int]
    ) -> Iterator[tuple[int, Generation]]:
        """Yield (position, result) in any order; `repeat[i]` tells equal prompts apart."""
        ...


def score_items(
    scorer: Answers | Command, condition: Condition, items: Sequence[Item]
) -> Iterator[Row]:
    """Score `items` of `condition` with whatever `scorer`'s model holds at the moment.

    Yields:
        One row per item, in the order in which they are finished, with the fields `item score
        scores prompt cluster output extracted gold gold_logprob num_prompt_tokens num_tokens
        truncated looped`. `scores["format"]` says whether the output matches the condition's
        `gold_format`. The caller adds the result key.
    """
    if isinstance(scorer, Command):
        yield from scorer.rows(condition, items)
    elif condition.kind == "choose":
        yield from _choose(scorer, condition, items)
    else:
        yield from _generate(scorer, condition, items)


def format_warning(condition: Condition, rows_by_parent: Mapping[str, Sequence[Row]]) -> str | None:
    """A sentence when no parent ever answers in the format that the gold answer is scored in.

    The teacher-forced log-probability then measures a format that neither model uses.
    """
    if condition.gold_format is None or not any(rows_by_parent.values()):
        return None
    if any(row["scores"].get("format") for rows in rows_by_parent.values() for row in rows):
        return None
    return (
        f"{condition.name}: neither {' nor '.join(rows_by_parent)} ever answers in the format "
        f"{condition.gold_format!r}, so gold_logprob says little here"
    )


def _choose(scorer: Answers, condition: Condition, items: Sequence[Item]) -> Iterator[Row]:
    owners = [(i, k) for i, item in enumerate(items) for k in range(len(item.pairs))]
    pairs = [pair for item in items for pair in item.pairs]
    found: list[dict[int, Likelihood]] = [{} for _ in items]
    for position, likelihood in scorer.likelihoods(pairs):
        i, k = owners[position]
        found[i][k] = likelihood
        if len(found[i]) == len(items[i].pairs):
            yield _choice_row(condition, items[i], [found[i][k] for k in range(len(found[i]))])


def _choice_row(condition: Condition, item: Item, found: Sequence[Likelihood]) -> Row:
    answers = [(one.logprob, one.is_greedy) for one in found]
    scores = _task_scores(condition, item, answers)
    gold = item.pairs.index(item.gold_pair) if item.gold_pair in item.pairs else None
    best = max(range(len(item.choices)), key=lambda k: found[k].logprob, default=None)
    return _row(
        condition,
        item,
        scores,
        output=None,
        extracted=None if best is None else item.choices[best],
        gold_logprob=None if gold is None else found[gold].logprob,
        num_tokens=0,
        truncated=False,
        looped=False,
    )


def _generate(scorer: Answers, condition: Condition, items: Sequence[Item]) -> Iterator[Row]:
    assert condition.decoding is not None
    pairs = [item.gold_pair for item in items]
    golds = dict(scorer.likelihoods([pair for pair in pairs if pair is not None]))
    owners = [i for i, pair in enumerate(pairs) if pair is not None]
    logprobs = {owners[k]: found.logprob for k, found in golds.items()}
    repeats = condition.repeats
    prompts = [item.prompt_ids for item in items for _ in range(repeats)]
    which = [k for _ in items for k in range(repeats)]
    found: list[dict[int, Generation]] = [{} for _ in items]
    for position, generation in scorer.generations(prompts, condition.decoding, which):
        i, k = divmod(position, repeats)
        found[i][k] = generation
        if len(found[i]) == repeats:
            texts = [found[i][k] for k in range(repeats)]
            yield _generation_row(condition, items[i], texts, logprobs.get(i))


def _generation_row(
    condition: Condition, item: Item, found: Sequence[Generation], gold_logprob: float | None
) -> Row:
    judged = [_judge_text(condition, item, one.text) for one in found]
    names = dict.fromkeys(name for scores, _ in judged for name in scores)
    scores = {n: fsum(s.get(n, 0.0) for s, _ in judged) / len(judged) for n in names}
    return _row(
        condition,
        item,
        scores,
        output=found[0].text,
        extracted=judged[0][1],
        gold_logprob=gold_logprob,
        num_tokens=sum(one.num_tokens for one in found),
        truncated=any(one.truncated for one in found),
        looped=any(one.looped for one in found),
    )


def _judge_text(condition: Condition, item: Item, text: str) -> tuple[dict[str, float], str | None]:
    scores = _task_scores(condition, item, text)
    extracted = None
    if condition.extract is not None:
        num_options = len((item.doc.get("choices") or {}).get("text", ())) or 5
        extracted = extract(condition.extract, text, num_options=num_options)
        score = float(same_answer(condition.extract, extracted, [item.gold]))
        scores = {condition.primary: score, **scores}
    if condition.gold_format is not None:
        scores["format"] = float(re.search(condition.gold_format, text) is not None)
    return scores, extracted


def _task_scores(condition: Condition, item: Item, answer: Any) -> dict[str, float]:
    """lm-eval's own filters and metrics for one item, named `metric` or `metric,filter`."""
    task = condition.task
    answers = [answer] if condition.kind == "generate" else list(answer)
    instances = list(item.instances)
    for instance, one in zip(instances, answers, strict=True):
        instance.resps, instance.filtered_resps = [one], {}
    scores: dict[str, float] = {}
    for ensemble in task._filters:
        ensemble.apply(instances)
        filtered = [instance.filtered_resps[ensemble.name] for instance in instances]
        found = task.process_results(item.doc, filtered)
        tag = "" if ensemble.name == "none" else f",{ensemble.name}"
        for name, value in found.items():
            if isinstance(value, int | float | bool) or hasattr(value, "item"):
                scores[f"{name}{tag}"] = float(value)
    return scores


def _row(condition: Condition, item: Item, scores: dict[str, float], **rest: Any) -> Row:
    return {
        "item": item.hash,
        "score": _primary(condition, scores),
        "scores": scores,
        "prompt": item.prompt_hash,
        "cluster": item.cluster,
        "gold": item.gold,
        "num_prompt_tokens": len(item.prompt_ids),
        **rest,
    }


def _primary(condition: Condition, scores: Mapping[str, float]) -> float:
    for name, value in scores.items():
        if name == condition.primary or name.startswith(f"{condition.primary},"):
            return value
    raise EvalDataError(
        f"{condition.name}: metric {condition.primary!r} has no value per item, got "
        f"{', '.join(scores) or 'none'}"
    )
