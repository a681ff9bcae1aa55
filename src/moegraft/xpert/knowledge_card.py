"""The model card of expert knowledge."""

from collections.abc import Mapping
from typing import Any

from moegraft.xpert.experts import MATRICES


def knowledge_card(about: Mapping[str, Any]) -> str:
    """A model card in words; no local path is in it."""
    donor, how, selection = about["donor"], about["decomposition"], about["selection"]
    rows = "\n".join(
        f"| {entry['layer']} | {', '.join(map(str, group['experts']))} | "
        + " | ".join(_cell(group["matrices"][name]) for name in MATRICES)
        + " |"
        for entry in about["layers"]
        for group in entry["groups"]
    )
    return f"""---
library_name: moegraft
base_model: [{donor["base_model"]}]
tags: [moegraft, xpert, mixture-of-experts]
---

# Expert knowledge of {donor["name"]}

No model by itself: what {selection["num_best"]} experts per layer of {donor["name"]} \
({donor["family"]}) have in common, to start the FFNs of other models from \
(XPERT, arXiv:2605.08842). Made with moegraft.

Experts were chosen by `{selection["score"]}` over {", ".join(selection["domains"] or ["?"])}. \
Method `{how["method"]}`{", neurons aligned" if how["align"] else ""}. The donor's licence applies.

| layer | experts | gate | up | down |
| --- | --- | --- | --- | --- |
{rows}

Cells: ranks of rows x columns x experts; retained energy; norm against the experts' mean norm.
"""


def _cell(about: Mapping[str, Any]) -> str:
    kept = about["retained_energy"]
    energy = "-" if kept is None else f"{kept:.3f}"
    return f"{' x '.join(map(str, about['ranks']))}; {energy}; {about['norm_ratio']:.2f}"
