"""`moegraft heal`: train nothing but the routers of a composed model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegraft.cli.bar_branch import recipe_of
from moegraft.cli.bar_route import device_of, sources_of, tuning_of
from moegraft.cli.evaluation import write_json
from moegraft.cli.steps import draw_figures, say, show_steps
from moegraft.errors import RecipeError


def heal(
    model: Annotated[
        str | None, typer.Argument(help="A composed MoE, or a heal recipe (YAML).")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]SOURCE", help="Chats or texts; repeatable."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="A,B", help="router (default), norm, qk_norm.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of each source's records; default 1.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share that is only measured; default 0.02.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a block; default 2048.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default 2.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default 1e-4.")] = None,
    batch: Annotated[int | None, typer.Option(help="Blocks a step; default by data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints to resume from; default none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto (as stored).")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Train the routers of a composed model, and say what that changes on held-out text."""
    from moegraft.bar.heal import HealRecipe, heal_model
    from moegraft.cli.bar_tables import show_losses

    is_recipe = model is not None and model.endswith((".yaml", ".yml"))
    flags: dict[str, Any] = {
        "model": None if is_recipe else model,
        "data": sources_of(data),
        "train": None if train is None else [part.strip() for part in train.split(",")],
        "share": share,
        "held_out": held_out,
        "length": length,
        "tuning": tuning_of(
            epochs=epochs,
            learning_rate=learning_rate,
            batch=batch,
            seed=seed,
            save_every=save_every,
        ),
    }
    file = Path(model) if is_recipe and model else None
    recipe = recipe_of(HealRecipe, file, flags, ("model", "data"), "heal")
    if out is None:
        raise RecipeError("heal: expected --out DIR")
    with show_steps("steps of healing") as on_step:
        found = heal_model(recipe, out, device=device_of(device), dtype=dtype, on_step=on_step)
    from moegraft.report.routing_figures import write_profile_figures

    draw_figures(lambda: write_profile_figures(found["routing"], out / "figures"), out)
    if as_json:
        write_json(found)
        return
    trained = "+".join(recipe.train)
    rows = [
        ("as composed", found["loss_before"]),
        (f"{trained} trained", found["loss_after"]),
    ]
    show_losses(Console(), rows)
    say(f"wrote {out}; all but {trained} is byte for byte as it was")
