"""A checkpoint's tokenizer as its files state it: ids, special tokens, chat template."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What can be known of a tokenizer without building it."""

    ids: Mapping[int, str] | None
    """Token by id; None when there is no tokenizer.json to read them from."""
    kind: str | None
    """Model of tokenizer.json, such as `BPE`."""
    special: Mapping[str, Any]
    """bos, eos, pad and unk tokens of tokenizer_config.json."""
    chat_template: str | None
    files: Mapping[str, str]
    """Sha256 by file name."""

    def summary(self) -> dict[str, Any]:
        """As plain data, without the tokens."""
        template = self.chat_template
        return {
            "kind": self.kind,
            "tokens": None if self.ids is None else len(self.ids),
            "special": dict(self.special),
            "chat_template_sha256": template and hashlib.sha256(template.encode()).hexdigest(),
            "files": sorted(self.files),
        }


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Read the tokenizer's files of `checkpoint`; no tokenizer library is needed.

    Raises:
        CheckpointError: a file is no valid JSON, or not of the form that transformers writes.
    """
    files = {file.name: file for file in checkpoint.tokenizer_files}
    ids, kind = _ids(files["tokenizer.json"]) if "tokenizer.json" in files else (None, None)
    config = _json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    special = {
        name: _text(config[name])
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if config.get(name) is not None
    }
    hashes = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return Tokenizer(ids, kind, special, _template(files, config), hashes)


def tokenizer_differences(host: Tokenizer, donor: Tokenizer) -> tuple[str, ...]:
    """Sentences about ids, special tokens and chat templates that differ; empty when none do."""
    found = []
    if host.ids is not None and donor.ids is not None:
        found += _id_differences(host.ids, donor.ids)
    elif host.files != donor.files and (host.files or donor.files):
        found.append("token ids cannot be compared: not both have a tokenizer.json")
    for name in sorted({*host.special, *donor.special}):
        ours, theirs = host.special.get(name), donor.special.get(name)
        if ours != theirs:
            found.append(f"{name}: host {ours!r}, donor {theirs!r}")
    if host.chat_template != donor.chat_template:
        missing = [n for n, t in (("host", host), ("donor", donor)) if t.chat_template is None]
        found.append(
            f"the {missing[0]} has no chat template" if missing else "the chat templates differ"
        )
    return tuple(found)


def _id_differences(host: Mapping[int, str], donor: Mapping[int, str]) -> list[str]:
    found = []
    changed = sorted(i for i in host.keys() & donor.keys() if host[i] != donor[i])
    if changed:
        shown = ", ".join(f"{i}: {host[i]!r} and {donor[i]!r}" for i in changed[:3])
        more = ", ..." if len(changed) > 3 else ""
        found.append(f"{len(changed)} ids name different tokens ({shown}{more})")
    for name, only in (("host", host.keys() - donor.keys()), ("donor", donor.keys() - host.keys())):
        if only:
            found.append(f"{len(only)} ids are only the {name}'s, the first is {min(only)}")
    return found


def _ids(file: Path) -> tuple[dict[int, str], str]:
    content = _json(file)
    try:
        model = content["model"]
        vocab = model["vocab"]
        if isinstance(vocab, Mapping):
            ids = {int(index): token for token, index in vocab.items()}
        else:
            ids = {index: entry[0] for index, entry in enumerate(vocab)}
        ids |= {int(token["id"]): token["content"] for token in content.get("added_tokens") or ()}
        return ids, str(model.get("type", "unknown"))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise CheckpointError(f"{file}: not a tokenizer.json as transformers writes it") from None


def _template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].read_text(encoding="utf-8")
    found = config.get("chat_template")
    if found is None and "chat_template.json" in files:
        found = _json(files["chat_template.json"]).get("chat_template")
    return found if isinstance(found, str) or found is None else json.dumps(found, sort_keys=True)


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content
