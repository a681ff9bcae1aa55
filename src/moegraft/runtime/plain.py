"""A model of any architecture, loaded by transformers: evaluated as it is, never swapped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moegraft.checkpoint import Checkpoint
from moegraft.checkpoint.plain import open_plain
from moegraft.runtime.load import from_pretrained, resolved_dtype
from moegraft.runtime.placement import find_device
from moegraft.runtime.swap import Patch
from moegraft.runtime.tokens import eos_ids, load_tokenizer


@dataclass
class PlainHost:
    """What an evaluation needs of a `Host`, for architectures that are not in the catalogue."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    checkpoint: Checkpoint
    eos_ids: frozenset[int]

    @classmethod
    def load(cls, source: str, *, device: str = "auto", dtype: str = "auto") -> "PlainHost":
        """Load `source` with `AutoModelForCausalLM`.

        Args:
            source: folder, `org/name[@revision]` or `nano:NAME`.
            device: a torch device, or `auto` for CUDA where there is one, else the CPU.
            dtype: `float32`, `bfloat16`, `float16`, or `auto` for the stored dtype.

        Raises:
            CheckpointError: it cannot be opened, or transformers refuses it.
        """
        checkpoint = open_plain(source)
        resolved = resolved_dtype(dtype, checkpoint, {})
        model = from_pretrained(checkpoint, resolved, "eager", find_device(device))
        tokenizer = load_tokenizer(checkpoint)
        return cls(model, tokenizer, checkpoint, eos_ids(checkpoint, tokenizer))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @contextmanager
    def with_patches(self, patches: Sequence[Patch]) -> Iterator[PreTrainedModel]:
        """Run a block on the model as it is."""
        assert not patches, "nothing can be swapped in a model without components"
        yield self.model

    def component_hashes(self, source: str = "host") -> dict[tuple[str, int | None], str]:
        """sha256 of every stored tensor, by its name."""
        assert source == "host", "a plain model has no donors"
        return {(name, None): digest for name, digest in self.checkpoint.content_hashes().items()}
