"""Freeze all of a model but chosen parameters and chosen experts or rows, in any training loop."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from moegraft.errors import RecipeError
from moegraft.train.frozen import Opened, check_frozen, frozen_hashes
from moegraft.train.rows import Rows, held, held_rows


@dataclass(frozen=True, slots=True)
class Trainable:
    """What may move; everything else is frozen.

    Names are those of the live module (`model.layers.3.mlp.experts.gate_up_proj`, not the
    published `...experts.1.gate_proj.weight`); `*` stands for any run of characters.
    """

    whole: tuple[str, ...] = ()
    """Parameters that train as a whole."""
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Indices on the leading axis that train: experts of a fused expert parameter or of the
    router, tokens of an embedding or an output head."""


@dataclass(frozen=True)
class _Slot:
    """A parameter by the module that owns it, because sharding replaces the parameter itself."""

    name: str
    owner: nn.Module
    attribute: str
    rows: tuple[int, ...] | None
    """Open rows, or None where the whole parameter is open."""

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.owner, self.attribute)


class Freeze:
    """A frozen model: what is open in it, and the proof that nothing else has moved."""

    def __init__(self, model: nn.Module, slots: list[_Slot], before: dict[nn.Parameter, bool]):
        """Made by `freeze`."""
        self.model = model
        self._slots = slots
        self._before = before
        self._handles: list[Any] = []
        self._masked: dict[str, nn.Parameter] = {}
        self._mask_gradients()
        self._hashes: dict[str, str] = frozen_hashes(model, self.opened)

    @property
    def opened(self) -> Opened:
        """Open parameters by live name: their open rows, or None for all of them."""
        return {slot.name: slot.rows for slot in self._slots}

    def num_open(self) -> int:
        """Numbers that may move."""
        total = 0
        for slot in self._slots:
            numel = slot.parameter.numel()
            share = 1 if slot.rows is None else len(slot.rows) / len(slot.parameter)
            total += round(numel * share)
        return total

    def guard(self, optimizer: Optimizer) -> None:
        """Make `optimizer` see nothing but the open rows, from its next step on.

        During each step a parameter with open rows is replaced by those rows alone, so that the
        frozen ones get no update, no weight decay and no optimizer state. Between steps the
        optimizer looks as it did before, so gradient clipping, scalers, schedulers, `zero_grad`
        and `state_dict` work as usual; the state of such a parameter has the shape of its open
        rows. Call it once per optimizer: after the model was sharded, before the first step.

        Raises:
            RecipeError: at a step with a closure, which would need gradients of frozen rows.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self._mask_gradients()
        step = _GuardedStep([slot for slot in self._slots if slot.rows is not None])
        self._handles.append(optimizer.register_step_pre_hook(step.narrow))
        self._handles.append(optimizer.register_step_post_hook(step.widen))

    def prepare(self, _model: nn.Module, optimizer: Optimizer) -> None:
        """`guard`, in the form that the trainers here take as their `prepare`."""
        self.guard(optimizer)

    def check(self) -> None:
        """Compare every frozen byte with its hash from when the model was frozen.

        Reads the whole model once (2 s per 4 GB); under `fully_shard` every process must call it.

        Raises:
            FrozenMovedError: names the first frozen tensor, expert or row that moved.
        """
        check_frozen(self._hashes, frozen_hashes(self.model, self.opened))

    def release(self) -> None:
        """Undo everything: hooks, guards and `requires_grad`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._masked.clear()
        for parameter, required in self._before.items():
            parameter.requires_grad_(required)

    def _mask_gradients(self) -> None:
        """Keep gradients of frozen rows at zero, so that clipping does not count them."""
        for slot in self._slots:
            parameter = slot.parameter
            if slot.rows is None or self._masked.get(slot.name) is parameter:
                continue
            _, closed = held_rows(parameter, slot.rows)
            if closed is not None:
                clear = partial(_clear_rows, closed)
                self._handles.append(parameter.register_post_accumulate_grad_hook(clear))
            self._masked[slot.name] = parameter


def freeze(model: nn.Module, trainable: Trainable) -> Freeze:
    """Let nothing in `model` move but what `trainable` names.

        frozen = freeze(model, Trainable(rows={"*.mlp.experts.*": (1,), "*.mlp.gate.weight": (1,)}))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        frozen.guard(optimizer)
        ...                                     # any loop, any number of steps
        frozen.check()                          # every frozen byte is where it was

    One expert of a fused parameter cannot be frozen with `requires_grad`, and masking its gradient
    is not enough, because decoupled weight decay and momentum still move it: `guard` does the
    rest. It holds in a plain loop, in TRL (`trainer.create_optimizer()`, then
    `guard(trainer.optimizer)`), under DistributedDataParallel, and under `fully_shard`, whose
    shards of experts it follows.

    Args:
        model: a live model; its `requires_grad` flags are set.
        trainable: what stays open. Of tied parameters, opening one opens both.

    Raises:
        RecipeError: a name matches no parameter, a row does not exist, or nothing is open.
    """
    slots = _open_slots(model, trainable)
    if not slots:
        raise RecipeError("freeze: nothing would train; name at least one parameter or row")
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for slot in slots:
        slot.parameter.requires_grad_(True)
    return Freeze(model, slots, before)


class _GuardedStep:
    """The two hooks around an optimizer's step."""

    def __init__(self, slots: list[_Slot]) -> None:
        self._slots = slots
        self._groups: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._added: list[dict[str, Any]] = []
        self._parts: list[tuple[Tensor, nn.Parameter, Rows]] = []

    def narrow(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before the step: put the open rows in the place of their parameters."""
        self._restore(optimizer)  # after a step that raised
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise RecipeError("a guarded optimizer cannot take a closure; compute gradients first")
        rows_of = {id(slot.parameter): slot.rows for slot in self._slots}
        for group in list(optimizer.param_groups):
            params = group["params"]
            self._groups.append((group, params))
            group["params"], sharded = [], []
            for parameter in params:
                rows = rows_of.get(id(parameter))
                if rows is None or parameter.grad is None:
                    group["params"].append(parameter)
                    continue
                part = self._part(optimizer, parameter, rows)
                if part is not None:
                    # Kernels over several tensors refuse to mix sharded and plain ones.
                    mixes = isinstance(parameter, DTensor)
                    (sharded if mixes else group["params"]).append(part)
            if sharded:
                self._added.append({**group, "params": sharded})
        optimizer.param_groups.extend(self._added)

    def widen(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        """After the step: bring back the parameters, with the state of their open rows."""
        for parameter, part, rows in self._parts:
            if isinstance(rows, Tensor):
                held(parameter).index_copy_(0, rows, part.detach())
        self._restore(optimizer)

    def _part(
        self, optimizer: Optimizer, parameter: nn.Parameter, chosen: tuple[int, ...]
    ) -> nn.Parameter | None:
        rows, _ = held_rows(parameter, chosen)
        if rows is None:
            return None
        assert parameter.grad is not None
        own = held(parameter)
        part = nn.Parameter(own[rows])
        part.grad = held(parameter.grad)[rows]
        state = optimizer.state.pop(parameter, None)
        if state is not None:
            optimizer.state[part] = {
                # An optimizer that stepped before it was guarded has state of the whole parameter.
                key: value[rows] if _has_shape(value, own) else value
                for key, value in state.items()
            }
        self._parts.append((parameter, part, rows))
        return part

    def _restore(self, optimizer: Optimizer) -> None:
        for group, params in self._groups:
            group["params"] = params
        for group in self._added:
            optimizer.param_groups.remove(group)
        for parameter, part, _ in self._parts:
            state = optimizer.state.pop(part, None)
            if state:
                optimizer.state[parameter] = state
        self._groups, self._added, self._parts = [], [], []


def _has_shape(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape


def _clear_rows(closed: Rows, parameter: Tensor) -> None:
    if parameter.grad is not None:
        held(parameter.grad)[closed] = 0


def _open_slots(model: nn.Module, trainable: Trainable) -> list[_Slot]:
    """One slot per open parameter, in the order of the model; tied parameters once."""
    named = dict(model.named_parameters(remove_duplicate=False))
    rows: dict[str, set[int] | None] = {}
    for pattern, chosen in trainable.rows.items():
        for name in _matching(pattern, named):
            _check_rows(pattern, name, chosen, len(named[name]))
            known = rows.setdefault(name, set())
            assert known is not None
            known.update(chosen)
    for pattern in trainable.whole:
        rows |= dict.fromkeys(_matching(pattern, named))
    slots: dict[int, _Slot] = {}
    for name in (name for name in named if name in rows):
        module, _, attribute = name.rpartition(".")
        chosen, size = rows[name], len(named[name])
        open_rows = None if chosen is None or len(chosen) == size else tuple(sorted(chosen))
        slot = _Slot(name, model.get_submodule(module), attribute, open_rows)
        first = slots.setdefault(id(named[name]), slot)
        if first is not slot and first.rows != slot.rows:
            raise RecipeError(
                f"freeze: {first.name} and {name} are tied, so what opens in one opens in both; "
                "name the same rows, or only one of them"
            )
    return list(slots.values())


def _matching(pattern: str, named: Mapping[str, Any]) -> Iterator[str]:
    found = [name for name in named if fnmatchcase(name, pattern)]
    if not found:
        near = get_close_matches(pattern, named, n=1, cutoff=0.4)
        hint = f" (closest: {near[0]})" if near else ""
        raise RecipeError(
            f"freeze: {pattern!r} matches no parameter{hint}; live names hold all experts of a "
            "layer in one parameter, so single experts are named by rows"
        )
    yield from found


def _check_rows(pattern: str, name: str, chosen: tuple[int, ...], size: int) -> None:
    wrong = [row for row in chosen if not 0 <= row < size]
    if wrong or not chosen:
        got = f"row {wrong[0]}" if wrong else "no row"
        raise RecipeError(f"freeze: {pattern!r}: {got} of {name}, expected some of 0 to {size - 1}")
