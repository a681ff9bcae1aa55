"""What an argument of `compare` and `gate` names: a checkpoint, or results that exist already."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moegraft.compare.formats import read_inspect, read_run_folder, read_table
from moegraft.compare.olmes import PATTERN as PREDICTIONS
from moegraft.compare.olmes import is_prediction, read_predictions
from moegraft.compare.reading import json_lines, json_object
from moegraft.compare.results import Cells, Results
from moegraft.compare.samples import PATTERN, is_sample, read_samples
from moegraft.errors import ResultsError

_LABEL = re.compile(r"(?P<label>[^=/\\]+)=(?P<rest>.+)")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Argument:
    """`[NAME=]SOURCE[:MODEL]`."""

    source: str
    """A path, `nano:NAME`, `org/name[@revision]` or the URL of a server."""
    label: str | None = None
    """What to call the model."""
    chosen: str | None = None
    """The one model to take from results of several."""

    @property
    def is_model(self) -> bool:
        """Whether it names a model to evaluate, not results."""
        path = Path(self.source)
        if path.exists():
            return (path / "config.json").is_file()
        return (
            self.is_server
            or self.source.startswith("nano:")
            or bool(_HUB_ID.fullmatch(self.source))
        )

    @property
    def is_server(self) -> bool:
        """Whether it is the URL of a server."""
        return self.source.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """The label, or a short name made of the source; it can name a folder."""
        short = self.source if ":" in self.source else Path(self.source).name or self.source
        return self.label or short.replace("/", "_")


def parse_argument(text: str) -> Argument:
    """Read `[NAME=]SOURCE[:MODEL]`; an existing path is never cut."""
    if Path(text).exists():
        return Argument(text)
    match = _LABEL.fullmatch(text)
    label, rest = (match["label"], match["rest"]) if match else (None, text)
    if Path(rest).exists():
        return Argument(rest, label)
    for place in (i for i in reversed(range(len(rest))) if rest[i] == ":"):
        if Path(rest[:place]).exists():  # a model's name may hold colons itself
            return Argument(rest[:place], label, rest[place + 1 :])
    return Argument(rest, label)


def read_results(
    argument: Argument | str,
    *,
    metric: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> list[Results]:
    """Every model in the results that `argument` names.

    Args:
        argument: a run directory of ours, a folder with `samples_*.jsonl` of lm-eval or one such
            file, likewise `*-predictions.jsonl` of OLMES, a CSV or JSON-lines table, a JSON log
            of Inspect or a folder of them.
        metric: which metric to take where the results have several.
        rename: new names for conditions.

    Raises:
        ResultsError: no results there, or they are damaged; one line says what and where.
    """
    asked = parse_argument(argument) if isinstance(argument, str) else argument
    found = merge(_read(Path(asked.source), asked.label, metric))
    if asked.chosen is not None:
        names = [one.model for one in found]
        found = [one for one in found if one.model == asked.chosen]
        if not found:
            raise ResultsError(
                f"{asked.source}: no model {asked.chosen!r}; it has {', '.join(names)}"
            )
    if asked.label is not None:
        if len(found) > 1:
            names = ", ".join(one.model for one in found)
            raise ResultsError(
                f"{asked.source} holds several models ({names}), which cannot all be called "
                f"{asked.label!r}; write {asked.label}={asked.source}:{found[0].model}"
            )
        found = [replace(found[0], model=asked.label)]
    return [_renamed(one, rename or {}) for one in found]


def merge(results: Sequence[Results]) -> list[Results]:
    """Join results of one model that come in several files.

    Raises:
        ResultsError: two of them are of the same condition.
    """
    found: dict[str, Results] = {}
    for one in results:
        first = found.get(one.model)
        if first is None:
            found[one.model] = one
            continue
        for condition in one.cells:
            if condition in first.cells:
                raise ResultsError(
                    f"{one.source}: a second set of {condition} for {one.model} (the first is in "
                    f"{first.source}); write NAME=PATH to tell models apart, or name one of them"
                )
        found[one.model] = replace(
            first,
            cells={**first.cells, **one.cells},
            metrics={**first.metrics, **one.metrics},
            notes=(*first.notes, *one.notes),
        )
    return list(found.values())


def _read(path: Path, label: str | None, metric: str | None) -> list[Results]:
    if path.is_dir():
        return _read_folder(path, label, metric)
    if not path.exists():
        raise ResultsError(
            f"{path}: neither results nor a checkpoint: no such file or folder "
            "(a Hub repository is written org/name, a packaged checkpoint nano:NAME)"
        )
    if path.suffix == ".jsonl":
        first = next(iter(json_lines(path)), (0, {}))[1]
        if is_sample(first):
            return [read_samples([path], label or path.parent.name, metric)]
        if is_prediction(first):
            return [read_predictions([path], label or path.parent.name, metric)]
    if path.suffix in _TABLES:
        return read_table(path, label)
    if path.suffix == ".json":
        return [_read_json(path, label, metric)]
    hint = "; convert it with `inspect log convert --to json`" if path.suffix == ".eval" else ""
    raise ResultsError(f"{path}: not a format that is read ({', '.join(_TABLES)}, .json){hint}")


def _read_folder(path: Path, label: str | None, metric: str | None) -> list[Results]:
    if (path / "items").is_dir():
        return read_run_folder(path, metric)
    for pattern, read in ((PATTERN, read_samples), (PREDICTIONS, read_predictions)):
        folders: dict[Path, list[Path]] = {}
        for file in sorted(path.rglob(pattern)):
            folders.setdefault(file.parent, []).append(file)
        if folders:
            alone = len(folders) == 1
            return [
                read(files, (label if alone else None) or folder.name, metric)
                for folder, files in folders.items()
            ]
    logs = sorted(path.glob("*.json"))
    if logs:
        return [_read_json(log, label, metric) for log in logs]
    raise ResultsError(
        f"{path}: no results in it; expected items/ of a run, {PATTERN} of lm-eval "
        f"(--log_samples), {PREDICTIONS} of OLMES, or JSON logs of Inspect"
    )


def _read_json(path: Path, label: str | None, metric: str | None) -> Results:
    if "results" in (content := json_object(path)) and "samples" not in content:
        raise ResultsError(
            f"{path}: aggregated results have no scores of items; run lm-eval with --log_samples "
            f"and name the folder with {PATTERN}"
        )
    return read_inspect(path, label, metric)


def _renamed(results: Results, rename: Mapping[str, str]) -> Results:
    cells: Cells = {}
    for condition, rows in results.cells.items():
        name = rename.get(condition, condition)
        if name in cells:
            raise ResultsError(f"{results.source}: two conditions would be called {name!r}")
        cells[name] = rows
    metrics = {rename.get(name, name): metric for name, metric in results.metrics.items()}
    return replace(results, cells=cells, metrics=metrics)
