"""Rebuild the nano checkpoints: tokenizer, pretraining, two post-trainings; safe to interrupt."""

import argparse
import json
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegraft.nano.pretrain import PretrainRecipe
from moegraft.nano.recipes import RECIPES, PostTraining

_log = logging.getLogger("moegraft.nano.build")


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything the weights depend on, the versions of the libraries aside."""

    pretrain: PretrainRecipe = field(default_factory=PretrainRecipe)
    recipes: Mapping[str, PostTraining] = field(default_factory=lambda: dict(RECIPES))
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the model's config."""
    num_generations: int = 8
    """Completions a prompt in reinforcement learning."""
    max_new_tokens: int = 80
    threads: int = 1
    """Threads a process; another number gives slightly other weights."""

    def stages(self) -> list[str]:
        """Names of all stages, each after the ones it needs."""
        names = ["base"]
        for name, recipe in self.recipes.items():
            names += [f"{name}/sft", f"{name}/dpo", *([f"{name}/rl"] if recipe.rl else [])]
        return names


def _load(folder: Path) -> tuple[Any, Any]:
    """Model (float32, ready to train) and tokenizer of a finished stage."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    model.set_experts_implementation("eager")
    return model, AutoTokenizer.from_pretrained(folder)


def finish_stage(folder: Path, model: Any, tokenizer: Any, seconds: float) -> None:
    """Write a stage aside and rename it, so that a stage that exists is whole."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.config.output_router_logits = False  # trainers switch it on
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / "stage.json").write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")
    aside.rename(folder)


def _base(plan: BuildPlan, work: Path) -> None:
    from moegraft.nano import pretrain
    from moegraft.nano import tokenizer as tokenizers

    tokenizer = tokenizers.train()
    recipe = plan.pretrain
    model = pretrain.new_model(tokenizer, recipe.seed, qk_gain=recipe.qk_gain, **plan.sizes)
    state = work / "base-state.pt"
    seconds = pretrain.pretrain(model, tokenizer, recipe, state)
    finish_stage(work / "base", model, tokenizer, seconds)
    state.unlink(missing_ok=True)


def _post_train(plan: BuildPlan, work: Path, name: str, step: str, before: Path) -> None:
    from moegraft.nano import recipes
    from moegraft.train.dpo import train_dpo
    from moegraft.train.grpo import train_grpo
    from moegraft.train.grpo_options import GrpoOptions
    from moegraft.train.sft import train_sft

    recipe = plan.recipes[name]
    model, tokenizer = _load(before)
    begin = time.perf_counter()
    place = work / "trainer" / name / step
    if step == "sft":
        train_sft(model, tokenizer, recipes.demonstrations(recipe), recipe.sft, work=place)
    elif step == "dpo":
        train_dpo(model, tokenizer, recipes.preferences(recipe), recipe.dpo, work=place)
    else:
        assert recipe.rl is not None
        train_grpo(
            model,
            tokenizer,
            recipes.tasks(recipe, plan.num_generations),
            recipe.rl,
            grpo=GrpoOptions(
                num_generations=plan.num_generations, max_new_tokens=plan.max_new_tokens
            ),
            work=place,
        )
    finish_stage(work / name / step, model, tokenizer, time.perf_counter() - begin)


def run_stage(plan: BuildPlan, work: Path, stage: str) -> None:
    """Run one stage unless its result is there; its inputs must be."""
    import torch

    if (work / stage).is_dir():
        _log.info("%s is there already", stage)
        return
    torch.set_num_threads(plan.threads)
    (work / stage).parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    if stage == "base":
        _base(plan, work)
    else:
        name, step = stage.split("/")
        names = [other for other in plan.stages() if other.startswith(f"{name}/")]
        place = names.index(stage)
        _post_train(plan, work, name, step, work / (names[place - 1] if place else "base"))
    _log.info("%s took %.0f s", stage, time.perf_counter() - begin)


def _run_stages(plan: BuildPlan, work: Path, stages: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for stage in stages:
        run_stage(plan, work, stage)


def build(plan: BuildPlan, work: Path, *, parallel: bool = True) -> dict[str, Path]:
    """Run every stage that is missing under `work`; the post-trainings run side by side.

    Returns:
        The final stage's folder of each checkpoint: base and one per recipe.
    """
    run_stage(plan, work, "base")
    chains = {name: [s for s in plan.stages() if s.startswith(f"{name}/")] for name in plan.recipes}
    if parallel:
        _run_side_by_side([(plan, work, stages) for stages in chains.values()])
    else:
        for stages in chains.values():
            _run_stages(plan, work, stages)
    return {"base": work / "base"} | {name: work / stages[-1] for name, stages in chains.items()}


def _run_side_by_side(arguments: Sequence[tuple[BuildPlan, Path, Sequence[str]]]) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_run_stages, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a post-training failed; the same command resumes")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m moegraft.nano.build`."""
    parser = argparse.ArgumentParser(prog="python -m moegraft.nano.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/nano"), help="finished checkpoints")
    parser.add_argument("--work", type=Path, default=Path("build/nano"), help="stages, to resume")
    parser.add_argument(
        "--worlds",
        type=Path,
        help="only write the test items, and the domains of the dense model, as JSON lines here",
    )
    parser.add_argument("--stage", action="append", help="only run this stage (repeatable)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from moegraft.nano import domains, worlds
    from moegraft.nano.export import export

    plan = BuildPlan()
    if arguments.worlds:
        worlds.write_items(arguments.worlds)
        domains.write(arguments.worlds / "domains", seed=0)
    elif arguments.stage:
        unknown = sorted(set(arguments.stage) - set(plan.stages()))
        if unknown:
            parser.error(f"no stage {unknown[0]}; the stages are {', '.join(plan.stages())}")
        _run_stages(plan, arguments.work, arguments.stage)
    else:
        for name, folder in build(plan, arguments.work).items():
            export(folder, arguments.out / name, name, plan.recipes)


if __name__ == "__main__":
    main()
