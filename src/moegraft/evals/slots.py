"""A KV cache of fixed rows and slots, and the one forward pass that everything here goes through.

transformers' own caches grow by concatenation: each new token copies all that came before, rows
of one batch must have equal lengths, and a shared prefix is copied for each batch. Here every row
writes at its own length into memory that is reserved once, so a finished row can be replaced
while the others go on, and a prefix stays in place for all batches that follow it.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE_SLOTS = 32
_CPU_CACHE_BYTES = 4 * 2**30


class SlotCache(Cache):
    """Keys and values of all layers, `[row, head, slot, dim]`, written where `aim` says."""

    def __init__(self, num_layers: int) -> None:
        self.num_rows = 0
        self.num_slots = 0
        self.rows: slice | Tensor = slice(0, 0)
        self.start: int | Tensor = 0
        self.end = 0
        self.prefix = 0
        self.slot_layers = [SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self.slot_layers])

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Have at least this many rows and slots; what is stored stays."""
        if num_rows <= self.num_rows and num_slots <= self.num_slots:
            return
        self.num_rows = max(self.num_rows, num_rows)
        if num_slots > self.num_slots:
            self.num_slots = max(num_slots + _SPARE_SLOTS, self.num_slots * 5 // 4)
        for layer in self.slot_layers:
            layer.grow()

    def aim(self, rows: slice, start: int, count: int) -> None:
        """The next forward pass writes `count` tokens of rows `rows` from slot `start` on."""
        self.rows, self.start, self.end = rows, start, start + count
        self.reserve(rows.stop, self.end)

    def aim_each(self, lengths: Int[Tensor, " row"], end: int) -> None:
        """The next forward pass writes one token per row, row i at slot `lengths[i]` < `end`."""
        self.rows, self.start, self.end = slice(0, len(lengths)), lengths, end
        self.reserve(len(lengths), end)

    def aim_packed(self, rows: Tensor, slots: Tensor, start: int) -> None:
        """The next forward pass is one sequence of pieces of many rows behind a shared prefix.

        Token i goes to slot `slots[i]` of row `rows[i]`; it is shown the first `start` slots of row
        0, then all tokens of this pass. The memory must have been reserved.
        """
        self.rows, self.start, self.end = rows, slots, start + len(rows)
        self.prefix = start

    def spread(self, start: int, end: int, num_rows: int) -> None:
        """Copy slots `start:end` of row 0 to the first `num_rows` rows."""
        self.reserve(num_rows, end)
        if start < end:
            for layer in self.slot_layers:
                if layer.is_initialized:  # layers below a trunk never run
                    layer.spread(start, end, num_rows)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row over another row."""
        for layer in self.slot_layers:
            layer.move(source, target, length)


class SlotLayer(CacheLayerMixin):
    """One layer of a `SlotCache`."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        # A strong reference would be a cycle, which keeps its memory until Python looks for cycles.
        self._cache = weakref.ref(cache)

    @property
    def cache(self) -> SlotCache:
        """The cache that this is a layer of."""
        found = self._cache()
        assert found is not None, "a layer is used within its cache"
        return found

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve memory once the number of heads and their size are known."""
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def _empty(self, like: Tensor) -> Tensor:
        shape = (self.cache.num_rows, like.shape[1], self.cache.num_slots, like.shape[3])
        # Zeros: a masked slot gets weight 0, and 0 times uninitialised memory may be NaN.
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; all that the aimed rows hold up to the aimed end."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, start, end = self.cache.rows, self.cache.start, self.cache.end
        if isinstance(rows, Tensor):
            return self._update_packed(rows, key_states, value_states)
        if isinstance(start, int):
            self.keys[rows, :, start:end] = key_states
            self.values[rows, :, start:end] = value_states
        else:
            start = start.to(self.keys.device)
            each = torch.arange(rows.stop, device=start.device)
            self.keys[each, :, start] = key_states[:, :, 0]
            self.values[each, :, start] = value_states[:, :, 0]
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def _update_packed(self, rows: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        shown, slots = [], self.cache.start
        for held, new in zip((self.keys, self.values), states, strict=True):
            assert held is not None and isinstance(slots, Tensor)
            held[rows.to(held.device), :, slots.to(held.device)] = new[0].transpose(0, 1)
            shown.append(torch.cat([held[:1, :, : self.cache.prefix], new], dim=2))
        return shown[0], shown[1]

    def grow(self) -> None:
        """Move to larger memory when the cache asks for more rows or slots."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        for name, old in (("keys", self.keys), ("values", self.values)):
            new = self._empty(old)
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)

    def spread(self, start: int, end: int, num_rows: int) -> None:
        """See `SlotCache.spread`."""
        for held in (self.keys, self.values):
            assert held is not None
            held[1:num_rows, :, start:end] = held[:1, :, start:end]

    def move(self, source: int, target: int, length: int) -> None:
        """See `SlotCache.move`."""
        for held in (self.keys, self.values):
            assert held is not None
            held[target, :, :length] = held[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Total length and offset of the keys."""
        return self.cache.end, 0

    def get_seq_length(self) -> int:
        """Number of slots before the aimed ones (callers that care pass positions)."""
        return self.cache.start if isinstance(self.cache.start, int) else self.cache.end - 1

    def get_max_length(self) -> int:
        """No fixed maximum: the cache grows."""
        return -1


class Forward:
    """A model together with what is needed to call it on a `SlotCache`.

    Args:
        model: a causal language model of transformers, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.num_layers: int = config.num_hidden_layers
        self.device: torch.device = model.get_input_embeddings().weight.device
        """Where token ids go; logits come from that of the head."""
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        # Models with several kinds of attention take one mask per kind.
        self.mixed: bool = "sliding_attention" in kinds
        self.window: int | None = window if self.mixed or not kinds else None
        attention = config._attn_implementation
        # Rows of a tree need masks of their own, which flash attention does not take.
        self.shares: bool = kinds <= {"full_attention", "sliding_attention"} and attention in (
            "sdpa",
            "eager",
        )
        """Whether keys and values can be shared between sequences."""
        self.additive: bool = attention == "eager"
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.max_length: int = getattr(config, "max_position_embeddings", 2**31)
        self.options: dict[str, Any] = (
            {"output_router_logits": False}
            if getattr(config, "output_router_logits", False)
            else {}
        )

    @property
    def slot_bytes(self) -> int:
        """Upper estimate of what one token takes in the cache, over all layers."""
        config = self.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        if getattr(config, "kv_lora_rank", None):  # latent attention caches full heads
            heads = config.num_attention_heads
            size = config.qk_nope_head_dim + config.qk_rope_head_dim
        return 2 * self.num_layers * heads * size * self.dtype.itemsize

    def cache_bytes(self) -> int:
        """Memory that generations may fill with keys and values."""
        if self.device.type != "cuda":
            return _CPU_CACHE_BYTES
        devices = {parameter.device for parameter in self.model.parameters()}
        # Each layer's keys and values are on its device: the fullest one decides.
        return min(map(_reusable_bytes, devices)) * len(devices) // 2

    @torch.no_grad()
    def __call__(
        self,
        cache: SlotCache,
        ids: Int[Tensor, "row token"],
        *,
        positions: Int[Tensor, "row token"],
        visible: Bool[Tensor, "row token slot"],
        slot_positions: Int[Tensor, "row slot"],
        read: tuple[Int[Tensor, " read"], Int[Tensor, " read"]],
    ) -> Float[Tensor, "read vocab"]:
        """Run the model; logits (the model's dtype) only at (row, token) of `read`.

        Args:
            cache: aimed at where these tokens go.
            ids: token ids, padded with anything.
            positions: of each token, for rotary embeddings and sliding windows.
            visible: which slots each token may look at; every token sees at least one.
            slot_positions: the position that each slot holds.
            read: rows and columns of the logits that are wanted.
        """
        with picked(self.model, read):
            logits = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=self._masks(visible, positions, slot_positions),
                past_key_values=cache,
                use_cache=True,
                **self.options,
            ).logits
        return logits[0]

    def _masks(self, visible: Tensor, positions: Tensor, slot_positions: Tensor) -> Any:
        if self.window is None:
            return self._mask(visible)
        near = positions[:, :, None] - slot_positions[:, None, :] < self.window
        if not self.mixed:
            return self._mask(visible & near)
        return {
            "full_attention": self._mask(visible),
            "sliding_attention": self._mask(visible & near),
        }

    def _mask(self, visible: Tensor) -> Tensor:
        visible = visible[:, None]
        if not self.additive:
            return visible
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)

    @torch.no_grad()
    def plain(
        self,
        ids: Int[Tensor, "row token"],
        mask: Bool[Tensor, "row token"],
        read: tuple[Int[Tensor, " read"], Int[Tensor, " read"]],
    ) -> Float[Tensor, "read vocab"]:
        """One pass over right-padded rows without a cache, for models that cannot share."""
        with picked(self.model, read):
            logits = self.model(
                input_ids=ids, attention_mask=mask.long(), use_cache=False, **self.options
            ).logits
        return logits[0]


def _reusable_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free, or reserved by torch and not in use; no limit elsewhere."""
    if device.type != "cuda":
        return 2**63
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


@contextmanager
def picked(model: Any, read: tuple[Int[Tensor, " read"], Int[Tensor, " read"]]) -> Iterator[None]:
    """Within this block the model computes logits at (row, token) of `read` only, as [1, read].

    The vocabulary projection is the largest matrix of a small model; most positions of a prompt
    never need it.
    """
    rows, columns = read

    def pick(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def load_prefix(
    forward: Forward, cache: SlotCache, tokens: Sequence[int], start: int, num_rows: int
) -> None:
    """Compute `tokens` in row 0 behind its first `start` slots, then copy them to all rows."""
    if not tokens:
        cache.reserve(num_rows, start)
        return
    device = forward.device
    end = start + len(tokens)
    cache.aim(slice(0, 1), start, len(tokens))
    cache.reserve(num_rows, end)
    slots = torch.arange(end, device=device)[None]
    positions = slots[:, start:]
    nothing = torch.zeros(1, dtype=torch.long, device=device)
    forward(
        cache,
        torch.tensor([tokens], dtype=torch.long, device=device),
        positions=positions,
        visible=slots[:, None, :] <= positions[:, :, None],
        slot_positions=slots,
        read=(nothing, nothing),
    )
    cache.spread(start, end, num_rows)
