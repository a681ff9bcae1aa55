"""Where a task's data comes from: the Hub, local JSON lines under --data, or the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import moegraft
from moegraft.errors import EvalDataError

PACKAGE = "package:"
"""In a task's `data_files`, stands for the folder of the installed package."""
_OURS = ("paper_", "xpert_")
_OTHER_NAMES = {"validation": ("valid", "dev")}


def resolve_data(
    task: str, config: Mapping[str, Any], data_dir: str | Path | None
) -> dict[str, Any]:
    """What to override in a task's config so that its data is read from the right place.

    Args:
        task: name of the task.
        config: the task's YAML.
        data_dir: a folder with one sub-folder per data set, or None for what the YAML says. The
            sub-folder is called like the task (`xpert_dolly` or `dolly`), the data set's
            configuration or the data set (`arc_challenge` for `allenai/ai2_arc`,
            `ARC-Challenge`) and holds `SPLIT.jsonl`; `valid` and `dev` are `validation` too.

    Raises:
        EvalDataError: `data_dir` has no folder for this task, or a split is missing there.
    """
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") == "json" and files:
        return {"dataset_kwargs": {**config["dataset_kwargs"], "data_files": _expand(task, files)}}
    if data_dir is None or not config.get("dataset_path"):
        return {}
    candidates = _folder_names(task, config)
    root = Path(data_dir)
    folder = next((root / name for name in candidates if (root / name).is_dir()), None)
    if folder is None:
        raise EvalDataError(
            f"{task}: no data under {root}, expected one of the folders {', '.join(candidates)}"
        )
    found, dropped = _split_files(task, folder, config)
    kwargs = {"data_files": found}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs, **dropped}


def _expand(task: str, files: Any) -> Any:
    if isinstance(files, Mapping):
        return {split: _expand(task, value) for split, value in files.items()}
    if isinstance(files, list):
        return [_expand(task, value) for value in files]
    if not str(files).startswith(PACKAGE):
        return files
    path = Path(moegraft.__file__).parent / str(files).removeprefix(PACKAGE)
    if not path.is_file():
        raise EvalDataError(f"{task}: the installed package has no {path.name}; reinstall it")
    return str(path)


def _folder_names(task: str, config: Mapping[str, Any]) -> list[str]:
    own = [task.removeprefix(prefix) for prefix in _OURS if task.startswith(prefix)]
    names = [task, *own, config.get("dataset_name"), str(config["dataset_path"]).rpartition("/")[2]]
    slugs = [str(name).lower().replace("-", "_") for name in names if name]
    return list(dict.fromkeys(slugs))


def _split_files(
    task: str, folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, None]]:
    """Files of the splits that a task names, and the split names that can go without one."""
    scored = config.get("test_split") or config.get("validation_split")
    needed = {scored}
    if int(config.get("num_fewshot") or 0) > 0 and not config.get("fewshot_config"):
        needed.add(config.get("fewshot_split") or config.get("training_split") or scored)
    found: dict[str, str] = {}
    dropped: dict[str, None] = {}
    for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
        split = config.get(key)
        if not split:
            continue
        if split not in needed:  # its records may have other fields, and take time to read
            dropped[key] = None
            continue
        stems = (str(split), *_OTHER_NAMES.get(str(split), ()))
        files = (folder / f"{s}{suffix}" for s in stems for suffix in (".jsonl", ".json"))
        path = next((path for path in files if path.is_file()), None)
        if path is None:
            raise EvalDataError(f"{task}: {folder} has no {split}.jsonl")
        found[str(split)] = str(path)
    return found, dropped
