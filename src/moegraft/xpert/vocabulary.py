"""The tokenizer of a target: the donor's where its ids fit the vocabulary, or a named one."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moegraft.checkpoint import Checkpoint
from moegraft.errors import CheckpointError, IncompatibleError
from moegraft.runtime.tokens import load_tokenizer
from moegraft.xpert.target import Target


def save_tokenizer(
    folder: Path, target: Target, donor: Checkpoint | None, tokenizer: str | None
) -> str | None:
    """Put a tokenizer into `folder`.

    Args:
        folder: of the target's checkpoint.
        target: whose vocabulary has to hold all ids.
        donor: whose files are copied, where they fit.
        tokenizer: folder or Hub name of another one, which has to fit.

    Returns:
        `donor`, `named`, or None where there is none that fits.

    Raises:
        IncompatibleError: the named tokenizer has more ids than the target.
        CheckpointError: it does not load.
    """
    vocab = target.config.get_text_config().vocab_size
    if tokenizer is not None:
        named = _load(tokenizer)
        if _num_ids(named) > vocab:
            raise IncompatibleError(
                f"--tokenizer {tokenizer}: has {_num_ids(named)} ids, and {target.source} a "
                f"vocab_size of {vocab}; set that to at least as many"
            )
        named.save_pretrained(folder)
        return "named"
    own = None if donor is None else load_tokenizer(donor)
    if donor is None or own is None or _num_ids(own) > vocab:
        return None
    for file in donor.tokenizer_files:
        place = folder / file.relative_to(donor.path)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    return "donor"


def _load(source: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"--tokenizer {source}: does not load: {said}") from None


def _num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values(), default=-1) + 1
