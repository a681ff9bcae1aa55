"""Verifiable rewards: a response is graded exactly as the evaluation grades it."""

from moegraft.evals.extract import EXTRACTIONS, extract, same_answer


def verify(kind: str, response: str, gold: str) -> bool:
    """Whether `response` answers `gold`.

    Args:
        kind: How the answer is found in the response: a name of `EXTRACTIONS` (the last number,
            the first yes or no, the first option letter).
        response: What the model said.
        gold: The right answer.
    """
    assert kind in EXTRACTIONS, kind
    return same_answer(kind, extract(kind, response), [gold])


def rewards(responses: list[str], kinds: list[str], golds: list[str]) -> list[float]:
    """One reward per response: 1 for a verified answer, else 0."""
    return [
        float(verify(kind, response, gold))
        for response, kind, gold in zip(responses, kinds, golds, strict=True)
    ]
