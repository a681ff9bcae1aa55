"""`moegraft bar route`: train the routers of a merged model."""

from pathlib import Path
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


def route(
    model: Annotated[
        str | None, typer.Argument(help="A merged model's folder, or a route recipe (YAML).")
    ] = None,
    *,
    data: Data = None,
    share: Annotated[
        float | None, typer.Option(help="Of each source's records; default 0.05.")
    ] = None,
    held_out: HeldOut = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Active experts; repeat for a router each.")
    ] = None,
    length: Length = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch: BatchSize = None,
    micro_batch: Annotated[int | None, typer.Option(help="Blocks held at once.")] = None,
    z: Annotated[float | None, typer.Option(help="Of the router's z-loss; default 1e-3.")] = None,
    balance: Annotated[
        float | None, typer.Option(help="Of a load-balancing loss; default none.")
    ] = None,
    seed: Seed = None,
    save_every: SaveEvery = None,
    out: Out = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Train the routers of a merged model, nothing else, on a small share of every domain."""
    from moegraft.bar.route import RouteRecipe

    file = recipe_file(model)
    flags: dict[str, Any] = {
        "model": None if file else model,
        "data": sources_of(data),
        "share": share,
        "held_out": held_out,
        "top_k": k,
        "length": length,
        "tuning": tuning_of(
            epochs=epochs,
            learning_rate=learning_rate,
            batch=batch,
            micro_batch=micro_batch,
            z=z,
            balance=balance,
            seed=seed,
            save_every=save_every,
        ),
    }
    recipe = recipe_of(RouteRecipe, file, flags, ("model", "data"), "bar route")
    if out is None:
        raise RecipeError("bar route: expected --out DIR")
    train_and_show(recipe, out.expanduser(), device=device_of(device), dtype=dtype, as_json=as_json)


def train_and_show(
    recipe: Any, out: Path, *, device: str, dtype: str = "float32", as_json: bool = False
) -> None:
    """Train the routers with progress; print the held-out losses and the routing."""
    from moegraft.bar.route import train_routers
    from moegraft.cli.bar_tables import show_losses, show_routing

    with show_steps("router steps") as bar:
        found = train_routers(
            recipe,
            out,
            device=device,
            dtype=dtype,
            on_step=lambda _what, done, total: bar(done, total),
        )
    _draw(found, out)
    if as_json:
        write_json(found)
        return
    rows = [(f"k = {row['k']}, router {row['router']}", row["loss"]) for row in found["rows"]]
    show_losses(stdout_console(), rows)
    for name, profile in found["routing"].items():
        show_routing(stdout_console(), profile, f"weight of each expert, k = {name}")
    say(f"wrote {out}")


def _draw(found: dict[str, Any], out: Path) -> None:
    from moegraft.report.routing_figures import write_profile_figures

    for k, profile in found["routing"].items():
        folder = out / "figures" / f"k-{k}"
        draw_figures(
            lambda profile=profile, folder=folder: write_profile_figures(
                profile, folder, measure="routing_mass"
            ),
            out,
        )
