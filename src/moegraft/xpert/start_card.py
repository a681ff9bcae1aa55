"""The model card of a target that starts from expert knowledge."""

from collections.abc import Mapping
from typing import Any

_SOURCES = {
    "knowledge": "adapted from expert knowledge",
    "donor": "inherited from the donor",
    "fresh": "fresh random numbers",
}


def start_card(about: Mapping[str, Any]) -> str:
    """In words, from the content of provenance.json; no local path is in it."""
    rows = "\n".join(
        f"| {_SOURCES[name]} | {number:,} |"
        for name, number in about["num_parameters"].items()
        if number
    )
    knowledge = about["knowledge"]
    base = "" if knowledge is None else f"base_model: [{knowledge['donor']['base_model']}]\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags: [moegraft, xpert]
---

# A {about["target"]} that starts from experts

Untrained: where training starts, not where it ends. {_origin(knowledge)}

| parameters | number |
| --- | ---: |
{rows}

`provenance.json` says what came from where. Made with moegraft (XPERT, arXiv:2605.08842).
"""


def _origin(knowledge: Mapping[str, Any] | None) -> str:
    if knowledge is None:
        return "No knowledge went into it."
    selection, donor = knowledge["selection"], knowledge["donor"]
    return (
        f"Its FFNs start from {selection['num_best']} experts per layer of {donor['name']} "
        f"({donor['family']}), chosen by `{selection['score']}` and refined by "
        f"`{knowledge['decomposition']['method']}`. The donor's licence applies."
    )
