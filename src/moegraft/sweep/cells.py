"""From configurations to cells: patches for the live host, and what their results depend on."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from moegraft.errors import IncompatibleError
from moegraft.evals.condition import Condition
from moegraft.evals.judge import Answers
from moegraft.evals.keys import engine_ingredients, tokenizer_hash
from moegraft.evals.run import Cell
from moegraft.runtime import Host, Patch
from moegraft.sweep.design import DONOR, Configuration
from moegraft.transfer.live import patches
from moegraft.transfer.plan import Plan, Source, plan_transfer
from moegraft.transfer.recipe import HOST

_BY_TOKEN = ("embedding", "lm_head")
"""Components whose rows are token ids: they cannot move between tokenizers."""


def plan_configurations(host: Host, configurations: Sequence[Configuration]) -> dict[str, Plan]:
    """Plans of all configurations by name, but for the pure donor, which needs none.

    Raises:
        RecipeError: a configuration does not fit the host.
        IncompatibleError: a donor does not fit, or token embeddings would move between
            tokenizers that number their tokens differently.
    """
    plans = {}
    for made in configurations:
        if made.name == DONOR:
            continue
        donors = {name: host.donor_checkpoints[name] for name in made.recipe.donors}
        plan = plan_transfer(made.recipe, host.checkpoint, donors)
        for slot, source in plan.moves.items():
            if slot.component in _BY_TOKEN and host.id_maps_differ[source.name]:
                raise IncompatibleError(
                    f"configuration {made.name!r} moves {slot.component} from {source.name!r}, "
                    "whose tokenizer numbers its tokens differently from the host's; "
                    "leave out embedding, lm_head and rest"
                )
        plans[made.name] = plan
    return plans


def make_cells(
    host: Host,
    configurations: Sequence[Configuration],
    plans: Mapping[str, Plan],
    *,
    conditions: Sequence[str],
    condition_of: Callable[[str, str], Condition],
    scorer_of: Callable[[str], Answers],
) -> list[Cell]:
    """One cell per condition and configuration, condition by condition.

    Args:
        host: loaded with every donor of the plans.
        configurations: of the design.
        plans: from `plan_configurations`.
        conditions: names, in the order in which to evaluate.
        condition_of: the condition by its name and the source of its tokenizer (`host`, or
            `donor` for the pure donor where tokenizers differ).
        scorer_of: the scorer by the source of its tokenizer.
    """
    shared = engine_ingredients(host)
    components = {
        made.name: component_digests(host, plans.get(made.name)) for made in configurations
    }
    checkpoints = {HOST: host.checkpoint, DONOR: host.donor_checkpoints[DONOR]}
    tokenizers = {name: tokenizer_hash(one.tokenizer_files) for name, one in checkpoints.items()}
    cells = []
    for name in conditions:
        for made in configurations:
            speaker = tokenizer_source(host, made.name)
            condition = condition_of(name, speaker)
            ingredients = {
                **shared,
                "components": components[made.name],
                "tokenizer": tokenizers[speaker],
                "settings": condition.settings,
            }
            make = _patches_of(host, plans.get(made.name))
            cells.append(Cell(made.name, condition, ingredients, scorer_of(speaker), make))
    return cells


def tokenizer_source(host: Host, configuration: str) -> str:
    """Whose tokenizer a configuration is asked in: `host`, but for a pure donor that differs."""
    return DONOR if configuration == DONOR and host.id_maps_differ[DONOR] else HOST


def component_digests(host: Host, plan: Plan | None) -> dict[str, str]:
    """Content hashes of what a configuration is made of, by component and layer.

    A component that comes whole from one checkpoint has that checkpoint's hash, so equal weights
    have equal digests whatever the recipe; one that is cut or mixed has a hash of its making.

    Args:
        host: live host, whose hashes are computed on first use.
        plan: None for the pure donor.
    """
    own = host.component_hashes(HOST)
    if plan is None:
        return {_unit(*unit): digest[:32] for unit, digest in host.component_hashes(DONOR).items()}
    num_slots = Counter(key[:2] for key in {key[:3] for key in plan.host.pieces()})
    moves: dict[tuple[str, int | None], dict[int | None, Source]] = defaultdict(dict)
    for slot, source in plan.moves.items():
        moves[slot.component, slot.layer][slot.expert] = source
    return {
        _unit(*unit): _digest(host, unit, own[unit], moves[unit], num_slots[unit])[:32]
        for unit in own
    }


def _digest(
    host: Host,
    unit: tuple[str, int | None],
    own: str,
    moves: Mapping[int | None, Source],
    num_slots: int,
) -> str:
    origin = {expert: host.component_hashes(s.name)[unit] for expert, s in moves.items()}
    taken = all(source.rule == "take" for source in moves.values())
    if taken and set(origin.values()) <= {own}:
        return own
    if taken and len(moves) == num_slots and len(set(origin.values())) == 1:
        return next(iter(origin.values()))
    parts = [
        [-1 if expert is None else expert, origin[expert], source.rule, source.weight]
        for expert, source in moves.items()
    ]
    content = json.dumps([own, sorted(parts, key=lambda part: part[0])])
    return hashlib.sha256(content.encode()).hexdigest()


def _patches_of(host: Host, plan: Plan | None) -> Callable[[], Sequence[Patch]]:
    if plan is None:
        return lambda: host.donor_patches(DONOR)
    return lambda: patches(plan, host)


def _unit(component: str, layer: int | None) -> str:
    return component if layer is None else f"{component} of layer {layer}"
