"""What the arms of a comparison share: texts, chosen experts, knowledge; and their models."""

import json
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from moegraft.checkpoint import Checkpoint, open_checkpoint
from moegraft.checkpoint.writer import staged_output
from moegraft.errors import CheckpointError
from moegraft.evals.store import write_atomically
from moegraft.evals.texts import Text
from moegraft.runtime import Host
from moegraft.runtime.load import from_pretrained, no_progress_bars
from moegraft.runtime.tokens import load_tokenizer
from moegraft.xpert.adapt import initialise_target
from moegraft.xpert.arms import ARMS, METHOD, Arm, select_for
from moegraft.xpert.compare_recipe import PROTOCOLS, CompareRecipe
from moegraft.xpert.corpus import read_corpus
from moegraft.xpert.decompose import Decomposition
from moegraft.xpert.experts import check_top, donor_fingerprint, moe_layers
from moegraft.xpert.fit import Fitted
from moegraft.xpert.identify import identify_experts
from moegraft.xpert.knowledge import (
    CONFIG,
    Knowledge,
    check_selection,
    decompose_experts,
    open_knowledge,
)
from moegraft.xpert.measure import count_windows
from moegraft.xpert.ranks import parse_ranks
from moegraft.xpert.scores import check_score
from moegraft.xpert.selection import SELECTION, read_selection
from moegraft.xpert.start import Adaptation, Start
from moegraft.xpert.target import Target, make_target, read_target
from moegraft.xpert.vocabulary import save_tokenizer


class Prepared:
    """Everything that is done once before the trainings."""

    def __init__(self, recipe: CompareRecipe, out: Path) -> None:
        """Open donor, target and texts.

        Raises:
            RecipeError, IncompatibleError, CheckpointError, EvalDataError, TrainDataError: input
                that cannot be used.
        """
        self.recipe, self.out = recipe, out
        self._fits: dict[str, dict[int, Fitted]] = {}
        self.donor = open_checkpoint(recipe.donor)
        moe_layers(self.donor)
        check_top(self.donor, recipe.top)
        self._chosen = None
        if recipe.selection is not None:
            self._chosen = read_selection(Path(recipe.selection).expanduser())
            check_selection(self.donor, self._chosen)
        self.target = _target(recipe.target, self.donor)
        tokenizer = load_tokenizer(self.donor)
        if tokenizer is None:
            raise CheckpointError(f"{recipe.donor}: no tokenizer, and texts cannot be read without")
        self.corpus = read_corpus(recipe.data, tokenizer, **recipe.reading())

    def check(self) -> None:
        """Raise what starting the target from this donor would raise, before anything is done."""
        first = {
            "source": self.donor.source,
            "fingerprint": donor_fingerprint(self.donor),
            "num_best": 1,
            "num_experts": self.donor.num_experts,
            "layers": [{"layer": n, "chosen": [{"expert": 0}]} for n in moe_layers(self.donor)],
        }
        with TemporaryDirectory() as folder:
            any_knowledge = Path(folder) / "any"
            known = decompose_experts(self.donor, first, Decomposition("single"), any_knowledge)
            for name, one in known.layer(known.layers[0]).items():
                shape = (*one.shape, self.recipe.top)
                parse_ranks(self.recipe.ranks).resolve(name, shape, f"{self.donor.source}:")
            for protocol in self.recipe.protocols:
                for name in self.recipe.arms:
                    self._start(open_knowledge(any_knowledge), name, protocol, 0)

    def extract(self) -> None:
        """Choose experts and decompose them for every arm, where that is not done yet."""
        chosen = self._select()
        for name in dict.fromkeys([METHOD, *self.recipe.arms]):
            arm = ARMS[name]
            for seed in range(self.recipe.num_seeds if arm.experts == "random" else 1):
                folder = self._folder(arm, seed)
                if not (folder / CONFIG).exists():
                    ranks = parse_ranks(self.recipe.ranks)
                    how = Decomposition(arm.method, ranks, align=self.recipe.align)
                    decompose_experts(self.donor, select_for(arm, chosen, seed), how, folder)

    def model(self, protocol: str, name: str, seed: int) -> PreTrainedModel:
        """The target as an arm starts it, in float32."""
        arm = ARMS[name]
        start = self._start(self._knowledge(arm, seed), name, protocol, seed)
        if arm.fits:
            start.take_fitted(self._fitted(start, arm.knowledge_name(seed)))
        with TemporaryDirectory() as folder:
            initialise_target(start, Path(folder) / "start")
            started = open_checkpoint(str(Path(folder) / "start"))
            model = from_pretrained(started, torch.float32, "eager", torch.device("cpu"))
        return model.train().requires_grad_(True)

    def keep(self, model: PreTrainedModel, folder: Path) -> None:
        """Save a trained model with the donor's tokenizer, whole or not at all."""
        with staged_output(folder) as aside, no_progress_bars():
            model.save_pretrained(aside)
            save_tokenizer(aside, self.target, self.donor, None)

    def about(self) -> dict[str, Any]:
        """What the report tells about the comparison."""
        validation = self.corpus.validation
        return {
            "donor": self.donor.path.name,
            "donor_parameters": sum(prod(tensor.shape) for tensor in self.donor.tensors.values()),
            "target": self.target.family.name,
            "target_parameters": sum(prod(tensor.shape) for tensor in self.target.tensors),
            "domains": list(self.corpus.train),
            "validation_tokens": {name: blocks.num_tokens for name, blocks in validation.items()},
        }

    def _start(self, knowledge: Knowledge, name: str, protocol: str, seed: int) -> Start:
        arm = ARMS[name]
        is_shallower = self.target.num_layers <= len(knowledge.layers)
        resizing = arm.resizing(self.recipe.resizing, is_shallower=is_shallower)
        inherit = PROTOCOLS[protocol]
        how = Adaptation(resizing, inherit, seed, control=arm.control)
        shared = None
        if name != METHOD and resizing.select == self.recipe.resizing.select:
            method = self._folder(ARMS[METHOD], seed)
            known = open_knowledge(method) if (method / CONFIG).exists() else knowledge
            ffns = Start(self.target, Adaptation(self.recipe.resizing), known).ffns
            shared = None if ffns is None else ffns.residual
        return Start(self.target, how, knowledge, self.donor if inherit else None, shared)

    def _select(self) -> dict[str, Any]:
        file = self.out / SELECTION
        if self._chosen is not None:
            return self._chosen
        if file.exists():
            return read_selection(file)
        num_tokens = self.recipe.profile_tokens
        texts = {name: _within(own, num_tokens) for name, own in self.corpus.texts.items()}
        table = count_windows(self._host, texts, self.out)
        score = check_score(self.recipe.score)
        found = identify_experts(table, num_best=self.recipe.top, score=score).as_dict()
        write_atomically(file, (json.dumps(found) + "\n").encode())
        return found

    @cached_property
    def _host(self) -> Host:
        """The donor, live; it stays in memory."""
        device = "cpu" if self.recipe.device == "cpu" else "auto"
        return Host.load(self.recipe.donor, {}, device=device)

    def _few_texts(self) -> list[Text]:
        """Of every domain alike."""
        share = max(1, self.recipe.fit_tokens // len(self.corpus.texts))
        return [text for own in self.corpus.texts.values() for text in _within(own, share)]

    def _fitted(self, start: Start, name: str) -> dict[int, Fitted]:
        """Neither protocol nor seed change what is fitted, so each knowledge is fitted once."""
        if name not in self._fits:
            self._fits[name] = start.fit(self._host, self._few_texts())
        return self._fits[name]

    def _knowledge(self, arm: Arm, seed: int) -> Knowledge:
        return open_knowledge(self._folder(arm, seed))

    def _folder(self, arm: Arm, seed: int) -> Path:
        return self.out / "knowledge" / arm.knowledge_name(seed)


def _target(given: Any, donor: Checkpoint) -> Target:
    """The recipe's target: a file, or changes to the donor's config."""
    if isinstance(given, str):
        return read_target(given)
    same = given.get("model_type", donor.config["model_type"]) == donor.config["model_type"]
    content = {**(donor.config if same else {}), **given}
    for key in ("architectures", "dtype", "torch_dtype", "transformers_version"):
        content.pop(key, None)
    return make_target(content, "target")


def _within(texts: Sequence[Text], max_tokens: int) -> list[Text]:
    found: list[Text] = []
    for text in texts:
        if max_tokens <= 0:
            break
        found.append(text)
        max_tokens -= len(text.ids)
    return found
