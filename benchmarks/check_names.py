"""Check that every name of published checkpoints lands in exactly one component.

    python benchmarks/check_names.py FOLDER

FOLDER holds lists `NAME.txt`, one tensor name per line, and beside each, where known, its
`NAME.config.json`. A list without config is tried on every family of the catalogue.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moegraft.errors import FamilyError
from moegraft.families import FAMILIES, Family, find_family


class Finding(NamedTuple):
    """What came of one list."""

    name: str
    family: str
    num_names: int
    components: Mapping[str, int]
    problems: Sequence[str]
    seconds: float


def check_list(path: Path) -> Finding:
    """Place every name of one list; problems are unknown, repeated and out-of-range names."""
    names = path.read_text(encoding="utf-8").split()
    config = _config(path)
    family = find_family(config) if config is not None else _best_family(names)
    problems = [f"{name}: listed twice" for name, n in Counter(names).items() if n > 1]
    components: Counter[str] = Counter()
    keys: dict[tuple[Any, ...], str] = {}
    started = time.perf_counter()
    for name in dict.fromkeys(names):
        try:
            place = family.place(name)
        except FamilyError as error:
            problems.append(str(error))
            continue
        components[place.component] += 1
        other = keys.setdefault((place.component, *place[1:]), name)
        if other != name:
            problems.append(f"{name}: the same place as {other}")
        if config is not None and place.component != "extra":
            problems += _out_of_range(family, config, name)
    seconds = time.perf_counter() - started
    return Finding(path.stem, family.name, len(names), components, problems, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per list, and every problem; 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    lists = sorted(parser.parse_args(argv).folder.glob("*.txt"))
    if not lists:
        print("no NAME.txt in the folder", file=sys.stderr)
        return 2
    findings = [check_list(path) for path in lists]
    for found in findings:
        counts = ", ".join(f"{name} {n}" for name, n in sorted(found.components.items()))
        placed = sum(found.components.values())
        print(
            f"{found.name}: family {found.family}, {placed} of {found.num_names} names placed "
            f"in {found.seconds:.2f} s ({counts}), {len(found.problems)} problems"
        )
        for problem in found.problems[:20]:
            print(f"  {problem}")
    return int(any(found.problems for found in findings))


def _config(path: Path) -> Mapping[str, Any] | None:
    beside = path.with_suffix(".config.json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None


def _best_family(names: Sequence[str]) -> Family:
    def num_known(family: Family) -> int:
        known = 0
        for name in names:
            try:
                family.place(name)
            except FamilyError:
                continue
            known += 1
        return known

    return max(FAMILIES.values(), key=num_known)


def _out_of_range(family: Family, config: Mapping[str, Any], name: str) -> list[str]:
    place = family.place(name)
    problems = []
    if place.layer is not None and place.layer >= family.num_layers(config):
        problems.append(f"{name}: layer {place.layer} of {family.num_layers(config)}")
    if place.expert is not None and place.expert >= family.num_experts(config):
        problems.append(f"{name}: expert {place.expert} of {family.num_experts(config)}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
