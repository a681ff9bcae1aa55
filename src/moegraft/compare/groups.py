"""Letters for a ranking: models share a letter exactly when no test tells them apart."""

from collections.abc import Collection, Sequence
from string import ascii_lowercase


def letters(names: Sequence[str], apart: Collection[tuple[str, str]]) -> dict[str, str]:
    """A compact letter display by insertion and absorption (Piepho 2004, J. Comput. Graph.
    Stat. 13:456).

    Args:
        names: best first; the first group is `a`.
        apart: pairs whose difference is established.
    """
    groups = [frozenset(names)]
    for a, b in apart:
        split = [
            part
            for group in groups
            for part in ((group - {a}, group - {b}) if {a, b} <= group else (group,))
        ]
        unique = list(dict.fromkeys(split))
        groups = [one for one in unique if not any(one < other for other in unique)]
    ranks = {name: place for place, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(ranks[name] for name in group))
    marks = [_mark(place) for place in range(len(groups))]
    return {
        name: "".join(mark for mark, group in zip(marks, groups, strict=True) if name in group)
        for name in names
    }


def _mark(place: int) -> str:
    size = len(ascii_lowercase)
    return ascii_lowercase[place] if place < size else f"({place + 1})"
