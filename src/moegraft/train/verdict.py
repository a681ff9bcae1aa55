"""What a verifier says about a response."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """A reward, and why there is none where the verifier itself failed."""

    reward: float
    failure: str | None = None
