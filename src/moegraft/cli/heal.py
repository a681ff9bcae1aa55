"""`moegraft heal`: train nothing but the routers of a composed model."""

from typing import Annotated, Any

import typer

from moegraft.cli.bar_branch import recipe_of
from moegraft.cli.router_options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    Epochs,
    HeldOut,
    Json,
    LearningRate,
    Length,
    Out,
    SaveEvery,
    Seed,
    device_of,
    recipe_file,
    sources_of,
    tuning_of,
)
from moegraft.cli.steps import draw_figures, say, show_steps
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import RecipeError


def heal(
    model: Annotated[
        str | None, typer.Argument(help="A composed MoE, or a heal recipe (YAML).")
    ] = None,
    *,
    data: Data = None,
    train: Annotated[
        str | None, typer.Option(metavar="A,B", help="router (default), norm, qk_norm.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of each source's records; default 1.")
    ] = None,
    held_out: HeldOut = None,
    length: Length = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch: BatchSize = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    out: Out = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Train the routers of a composed model, and say what that changes on held-out text."""
    from moegraft.bar.heal import HealRecipe, heal_model
    from moegraft.cli.bar_tables import show_losses

    file = recipe_file(model)
    flags: dict[str, Any] = {
        "model": None if file else model,
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
    recipe = recipe_of(HealRecipe, file, flags, ("model", "data"), "heal")
    if out is None:
        raise RecipeError("heal: expected --out DIR")
    out = out.expanduser()
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
    show_losses(stdout_console(), rows)
    say(f"wrote {out}; all but {trained} is byte for byte as it was")
