"""Why a transfer helps or harms: routing, drift, and router-expert co-adaptation of a sweep.

Every batch of texts is read by the host, the donor and all configurations in turn. The parents'
routing and hidden states of that one batch are kept as the reference, everything else is added up
as it is seen, so memory does not grow with the number of texts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moegraft.errors import IncompatibleError
from moegraft.evals.slots import Forward
from moegraft.evals.texts import Text
from moegraft.runtime import Host, Patch
from moegraft.runtime.batches import Batch, batches
from moegraft.runtime.hooks import Routing, observed, observed_hidden, routers
from moegraft.runtime.probe import RoutingCounts, RoutingProfile
from moegraft.sweep.agreement import Agreement, Means, Reading, decide_again
from moegraft.sweep.cells import plan_configurations
from moegraft.sweep.coadaptation import PARENTS, coadaptation, pairings, sentences
from moegraft.sweep.design import DONOR, Configuration, SweepRecipe, design
from moegraft.transfer.live import patches
from moegraft.transfer.recipe import HOST

SCHEMA = 1

_CPU_BYTES = 2**29
_CUDA_BYTES = 2**32
_MAX_BATCH_TOKENS = 8192
_DIGITS = 6


def diagnosed_configurations(recipe: SweepRecipe) -> tuple[Configuration, ...]:
    """The configurations of a sweep, and those that the 2 x 2 of router and experts needs."""
    own = design(recipe)
    known = {made.name for made in own}
    names = {name for others in PARENTS for name in pairings(others).values()}
    missing = tuple(sorted(names - known))
    if not missing:
        return own
    more = SweepRecipe(
        recipe.host, recipe.donor, "custom", configurations=missing, qk_norm=recipe.qk_norm
    )
    return (*own, *(made for made in design(more) if made.name in missing))


def diagnose(
    host: Host,
    configurations: Sequence[Configuration],
    texts: Mapping[str, Sequence[Text]],
    *,
    batch_tokens: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda num_done, num_texts: None,
) -> dict[str, Any]:
    """Read `texts` with host, donor and every configuration, and compare what happens inside.

    Cost: one forward pass per text and configuration. Memory: two models' hidden states of one
    batch.

    Args:
        host: loaded with a donor named `donor`, and every other donor of the configurations.
        configurations: from `diagnosed_configurations`, host and donor included.
        texts: by condition; each text is read as it is, with the host's token ids.
        batch_tokens: tokens of one forward pass; None for what 512 MB (on a GPU 4 GB) hold.
        seed: of the bootstrap.
        on_step: called after each batch with the number of texts read, and of all.

    Returns:
        What `diagnose.json` holds; docs/diagnose.md explains every number.

    Raises:
        IncompatibleError: the donor's tokenizer numbers its tokens differently, the donor cannot
            run inside the host, or the model has no routers.
        RecipeError: a configuration does not fit the host.
    """
    if host.id_maps_differ[DONOR]:
        raise IncompatibleError(
            "the donor's tokenizer numbers its tokens differently from the host's, so the two "
            "cannot read the same tokens; diagnose needs parents with one tokenizer"
        )
    plans = plan_configurations(host, configurations)
    swaps: dict[str, Sequence[Patch]] = {HOST: (), DONOR: host.donor_patches(DONOR)}
    swaps |= {name: patches(plan, host) for name, plan in plans.items() if name not in swaps}
    diagnosis = _Diagnosis(host, swaps)
    total, done = sum(map(len, texts.values())), 0
    for condition, own in texts.items():
        size = batch_tokens or _batch_tokens(host)
        firsts = [text.first for text in own]
        for batch in batches([text.ids for text in own], size, host.device, firsts):
            diagnosis.read(condition, [own[row] for row in batch.rows], batch)
            done += len(batch.rows)
            on_step(done, total)
    return _about(host, texts) | diagnosis.result(texts, seed)


@dataclass
class _Diagnosis:
    """Running sums over all batches."""

    host: Host
    swaps: Mapping[str, Sequence[Patch]]
    forward: Forward = field(init=False)
    counts: dict[str, RoutingCounts] = field(default_factory=dict)
    agreements: dict[tuple[str, str, str], Agreement] = field(default_factory=dict)
    """By configuration, parent and condition."""
    again: dict[tuple[str, str], Agreement] = field(default_factory=dict)
    """Routers on other hidden states than their own: by what differs, and condition."""
    losses: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """Nats per token by configuration and condition, then by text."""

    def __post_init__(self) -> None:
        self.forward = Forward(self.host.model)

    def read(self, condition: str, texts: Sequence[Text], batch: Batch) -> None:
        """Let every configuration read one batch."""
        references: dict[str, Reading] = {}
        for name, swap in self.swaps.items():
            with self.host.with_patches(swap):
                reading = self._read_one(name, condition, texts, batch, references)
                if name in PARENTS:
                    references[name] = reading
                if name == "router":
                    self._decide_again(condition, references, HOST)
            if name == DONOR:
                agreement = self._agreement(HOST, DONOR, condition)
                agreement.add(references[HOST], references[DONOR])
                self._decide_again(condition, references, DONOR)

    def _read_one(
        self,
        name: str,
        condition: str,
        texts: Sequence[Text],
        batch: Batch,
        references: Mapping[str, Reading],
    ) -> Reading:
        """One pass of what is swapped in; the reading is kept for parents only."""
        kept = Reading()
        count = self.counts.setdefault(name, RoutingCounts()).observer(condition)
        compared = [(r, self._agreement(name, p, condition)) for p, r in references.items()]

        def on_routing(routing: Routing) -> None:
            count(routing)
            for reference, agreement in compared:
                agreement.add_routing(routing, reference.routing[routing.layer])
            if name in PARENTS:
                kept.keep_routing(routing)

        def on_hidden(layer: int, hidden: Tensor) -> None:
            for reference, agreement in compared:
                agreement.add_hidden(layer, hidden, reference.hidden[layer])
            if name in PARENTS:
                kept.keep_hidden(layer, hidden)

        model, family = self.host.model, self.host.checkpoint.family
        with (
            observed(model, family, on_routing, batch.counted),
            observed_hidden(model, family, on_hidden, batch.counted),
        ):
            found = text_losses(self.forward, texts, batch)
        losses = self.losses.setdefault((name, condition), {})
        losses |= {text.name: loss for text, loss in zip(texts, found, strict=True)}
        return kept

    def _decide_again(self, condition: str, references: Mapping[str, Reading], read: str) -> None:
        """Let the routers that stand in the model judge the hidden states of parent `read`.

        The other parent's routers stand there: what changes against `read` is due to the routers'
        weights, what changes against the other parent to the hidden states.
        """
        other = DONOR if read == HOST else HOST
        found = decide_again(
            routers(self.host.model, self.host.checkpoint.family), references[read]
        )
        for cause, parent in (("weights", read), ("hidden", other)):
            agreement = self.again.setdefault((cause, condition), Agreement())
            agreement.add(found, references[parent])

    def _agreement(self, name: str, parent: str, condition: str) -> Agreement:
        return self.agreements.setdefault((name, parent, condition), Agreement())

    def result(self, texts: Mapping[str, Sequence[Text]], seed: int) -> dict[str, Any]:
        """Everything, JSON-ready."""
        conditions = list(texts)
        losses = {
            condition: {
                name: np.array([self.losses[name, condition][t.name] for t in texts[condition]])
                for name in self.swaps
            }
            for condition in conditions
        }
        agreement = {
            (name, parent): _transposed(
                self.agreements[name, parent, condition].means() for condition in conditions
            )
            for name in self.swaps
            for parent in PARENTS
            if (name, parent) not in ((HOST, HOST), (DONOR, DONOR))
        }
        clusters = {condition: [text.cluster for text in texts[condition]] for condition in texts}
        overlaps = {pair: found["overlap"] for pair, found in agreement.items()}
        found = coadaptation(losses, clusters, overlaps, seed=seed)
        profiles = {name: counts.profile() for name, counts in self.counts.items()}
        any_profile = profiles[HOST]
        return {
            "layers": list(any_profile.layers),
            "num_experts": any_profile.num_experts,
            "top_k": any_profile.top_k,
            "configurations": list(self.swaps),
            "routing": {name: _routing(profile) for name, profile in profiles.items()},
            "agreement": {
                name: {
                    parent: agreement[name, parent]
                    for parent in PARENTS
                    if (name, parent) in agreement
                }
                for name in self.swaps
            },
            "routers": {
                cause: _transposed(self.again[cause, condition].means() for condition in conditions)
                for cause in ("weights", "hidden")
            },
            "loss": {
                condition: {name: float(values.mean()) for name, values in own.items()}
                for condition, own in losses.items()
            },
            "coadaptation": found,
            "sentences": sentences(found),
        }


@torch.no_grad()
def text_losses(forward: Forward, texts: Sequence[Text], batch: Batch) -> list[float]:
    """Mean negative log-probability, in nats, of the tokens from each text's `answer` on.

    Args:
        forward: of the live model.
        texts: the rows of the batch.
        batch: right-padded.
    """
    places = [(r, c) for r, text in enumerate(texts) for c in range(text.answer, len(text.ids))]
    rows, columns = torch.tensor(places, device=batch.ids.device).T
    logits = forward.plain(batch.ids, batch.mask, (rows, columns - 1))
    targets = batch.ids[rows, columns].to(logits.device)
    nats = _nats(logits, targets)
    sums = torch.zeros(len(texts), dtype=torch.float64, device=nats.device)
    sums.index_add_(0, rows.to(nats.device), nats)
    lengths = [len(text.ids) - text.answer for text in texts]
    return [total / length for total, length in zip(sums.tolist(), lengths, strict=True)]


def _nats(
    logits: Float[Tensor, "read vocab"], targets: Tensor, at_once: int = 256
) -> Float[Tensor, " read"]:
    """Negative log-probability of each target, computed in float32."""
    parts = zip(logits.split(at_once), targets.split(at_once), strict=True)
    losses = [torch.nn.functional.cross_entropy(a.float(), b, reduction="none") for a, b in parts]
    return torch.cat(losses).double()


def _batch_tokens(host: Host) -> int:
    """What fits: routing inputs and hidden states of two models, and logits, in float32."""
    config: Any = host.model.config.get_text_config(decoder=True)
    by_layer = 2 * config.hidden_size + host.checkpoint.family.num_experts(host.checkpoint.config)
    per_token = 4 * (2 * config.num_hidden_layers * by_layer + 2 * config.vocab_size)
    budget = _CUDA_BYTES if host.device.type == "cuda" else _CPU_BYTES
    return max(1, min(_MAX_BATCH_TOKENS, budget // per_token))


def _about(host: Host, texts: Mapping[str, Sequence[Text]]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "host": host.checkpoint.source,
        "donor": host.donor_checkpoints[DONOR].source,
        "device": " and ".join(map(str, host.devices)),
        "dtype": str(host.dtype).removeprefix("torch."),
        "conditions": [
            {
                "name": condition,
                "num_texts": len(own),
                "num_tokens": sum(len(text.ids) - text.first for text in own),
                "num_predicted": sum(len(text.ids) - text.answer for text in own),
            }
            for condition, own in texts.items()
        ],
    }


def _routing(profile: RoutingProfile) -> dict[str, Any]:
    wanted = ("frequency", "routing_mass", "token_entropy", "load_entropy")
    found = profile.as_dict()
    return {name: _rounded(found[name]) for name in wanted} | {"dead": found["dead"]}


def _transposed(means: Iterable[Means]) -> dict[str, Any]:
    """By measure, then condition, then layer."""
    rows = list(means)
    found = {name: [getattr(row, name) for row in rows] for name in Means._fields}
    return {name: _rounded(values) for name, values in found.items() if any(values)}


def _rounded(values: Any) -> Any:
    return np.round(np.asarray(values, dtype=np.float64), _DIGITS).tolist()
