"""Python that our task files call: ROUGE-L as MiniLLM measures it, and MedMCQA's two numberings."""

import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from moegraft.errors import EvalDataError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L (F measure, stemmed) and exact match of one response, from 0 to 1.

    The best over the references counts, as in Super-Natural Instructions' evaluation, which
    MiniLLM uses (arXiv:2306.08543). Papers report 100 times the mean.

    Args:
        doc: with `output`, one reference or a list of them.
        results: the response.
    """
    references = [doc["output"]] if isinstance(doc["output"], str) else [*doc["output"]]
    response = results[0].strip()
    scorer = _scorer()
    return {
        "rouge_l": float(max(scorer.score(one, response)["rougeL"].fmeasure for one in references)),
        "exact_match": float(_bare(response) in {_bare(text) for text in references}),
    }


def medmcqa(dataset: Iterable[Mapping[str, Any]]) -> Any:
    """Add `gold`, the right option counted from 0, to MedMCQA's records.

    Raises:
        EvalDataError: `cop` counts neither from 0 nor from 1, or so few records that nobody knows.
    """
    seen = {record["cop"] for record in dataset}
    if not seen <= {0, 1, 2, 3, 4} or {0, 4} <= seen:
        raise EvalDataError(f"medmcqa: field cop: expected 0 to 3 or 1 to 4, got {sorted(seen)}")
    if not seen & {0, 4}:
        raise EvalDataError(
            "medmcqa: neither 0 nor 4 occurs in field cop, so it cannot be told whether it counts "
            "from 0 (as on the Hub) or from 1 (as in the original files); give more records"
        )
    first = 0 if 0 in seen else 1
    return dataset.map(lambda record: {"gold": record["cop"] - first})  # pyright: ignore


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _bare(text: str) -> str:
    """Lower case, without punctuation and surplus space."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
