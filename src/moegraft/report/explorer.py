"""The items x configurations explorer: what was asked, what each configuration answered."""

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from moegraft.evals.store import read_prompts
from moegraft.report.items import Row, Run, configuration_order

MAX_ITEM_BYTES = 3_000_000
"""What the explorer may add to the page, so that it stays well under 5 MB."""

_MAX_ITEMS = 200
_MAX_TEXT = 2_000
_MAX_SHARED = 12_000
_MIN_SHARED = 200

EXPLORER = """
<p class="quiet">One line per item, one mark per configuration; items on which configurations
disagree come first. Open an item to read the prompt and two answers side by side.</p>
<div class="controls">
<label>condition <select id="condition"></select></label>
<label>left <select id="first"></select></label>
<label>right <select id="second"></select></label>
<label>show <select id="filter">
<option value="all">all</option><option value="gained">right one better</option>
<option value="lost">left one better</option><option value="right">both right</option>
<option value="wrong">both wrong</option><option value="split">configurations disagree</option>
<option value="cut">an answer cut off or looping</option></select></label>
<label>containing <input id="words" type="search" placeholder="prompt, gold, answer"></label>
</div>
<p class="quiet" id="count" aria-live="polite"></p>
<details id="shared" hidden><summary>What all prompts of this condition begin with</summary>
<div class="output"></div></details>
<div id="columns" class="marks" aria-hidden="true"></div>
<div id="list"></div>
<button id="more" type="button" hidden>more</button>
<noscript><p>The explorer needs JavaScript; the rows stand in the run's items/.</p></noscript>
"""


def explorer_items(run: Run) -> dict[str, Any]:
    """Items per condition with every configuration's answer, those they disagree on first.

    At most 200 items a condition and 3 MB in all; long texts are cut and say so. What all prompts
    of a condition begin with is given once.
    """
    budget = MAX_ITEM_BYTES / max(1, len(run.conditions))
    found = {}
    for condition in run.conditions:
        cells = run.items[condition]
        names = sorted(cells, key=configuration_order)
        prompts = read_prompts(run.path, condition)
        shared = _shared([entry["prompt"] for entry in prompts.values()])
        items = {item for rows in cells.values() for item in rows}
        ranked = sorted(items, key=lambda item: (-_disagreement(cells, item), item))
        chosen, used = [], len(json.dumps(shared))
        for item in ranked[:_MAX_ITEMS]:
            rows = {name: cells[name][item] for name in names if item in cells[name]}
            prompt = prompts[item]["prompt"][len(shared) :] if item in prompts else None
            entry = {
                "item": item,
                "gold": str(next(iter(rows.values())).get("gold", "")),
                "prompt": None if prompt is None else _cut(prompt, keep_end=True),
                "cells": {name: _answer(row) for name, row in rows.items()},
            }
            used += len(json.dumps(entry))
            if used > budget:
                break
            chosen.append(entry)
        found[condition] = {
            "configurations": names,
            "shared": _cut(shared, _MAX_SHARED, keep_end=True),
            "num_items": len(items),
            "items": chosen,
        }
    return found


def _shared(prompts: Sequence[str]) -> str:
    """What all prompts begin with, up to the end of a line; empty when that is little."""
    if len(prompts) < 2:
        return ""
    # What the first and the last in alphabetical order begin with, all in between begin with too.
    lines = zip(min(prompts).split("\n")[:-1], max(prompts).split("\n")[:-1], strict=False)
    equal = takewhile(lambda pair: pair[0] == pair[1], lines)
    shared = "".join(f"{line}\n" for line, _ in equal)
    return shared if len(shared) >= _MIN_SHARED else ""


def _disagreement(cells: Mapping[str, Mapping[str, Row]], item: str) -> int:
    scores = [rows[item]["score"] for rows in cells.values() if item in rows]
    return min(sum(score >= 1 for score in scores), sum(score < 1 for score in scores))


def _answer(row: Row) -> dict[str, Any]:
    output, gold = row.get("output"), row.get("gold_logprob")
    answer = {
        "score": row["score"],
        "extracted": row.get("extracted"),
        "output": None if output is None else _cut(output),
        "gold": None if gold is None else round(gold, 2),
    }
    flags = [name for name in ("truncated", "looped") if row.get(name)]
    return answer | ({"flags": flags} if flags else {})


def _cut(text: str, length: int = _MAX_TEXT, *, keep_end: bool = False) -> str:
    if len(text) <= length:
        return text
    if keep_end:
        return f"({len(text)} characters) ... {text[-length:]}"
    return f"{text[:length]} ... ({len(text)} characters)"
