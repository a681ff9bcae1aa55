"""`moegraft bar route`: train the routers of a merged model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from moegraft.cli.bar_branch import recipe_of
from moegraft.cli.evaluation import write_json
from moegraft.cli.steps import draw_figures, say, show_steps
from moegraft.errors import RecipeError


def route(
    model: Annotated[
        str | None, typer.Argument(help="A merged model's folder, or a route recipe (YAML).")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]SOURCE", help="Chats or texts of a domain; repeatable."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of each source's records; default 0.05.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share that is only measured; default 0.02.")
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option(help="Active experts; repeat for a router each.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a block; default 2048.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default 2.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default 1e-4.")] = None,
    batch: Annotated[int | None, typer.Option(help="Blocks a step; default by data.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Blocks held at once.")] = None,
    z: Annotated[float | None, typer.Option(help="Of the router's z-loss; default 1e-3.")] = None,
    balance: Annotated[
        float | None, typer.Option(help="Of a load-balancing loss; default none.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints to resume from; default none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to make.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto (as stored).")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")] = False,
) -> None:
    """Train the routers of a merged model, nothing else, on a small share of every domain."""
    from moegraft.bar.route import RouteRecipe

    is_recipe = model is not None and model.endswith((".yaml", ".yml"))
    flags: dict[str, Any] = {
        "model": None if is_recipe else model,
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
    file = Path(model) if is_recipe and model else None
    recipe = recipe_of(RouteRecipe, file, flags, ("model", "data"), "bar route")
    if out is None:
        raise RecipeError("bar route: expected --out DIR")
    train_and_show(recipe, out, device=device_of(device), dtype=dtype, as_json=as_json)


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
    show_losses(Console(), rows)
    for name, profile in found["routing"].items():
        show_routing(Console(), profile, f"weight of each expert, k = {name}")
    say(f"wrote {out}")


def sources_of(given: list[str] | None) -> dict[str, str] | None:
    """`--data` options by name; a source without one is called by its file's name.

    Raises:
        RecipeError: a name stands twice.
    """
    if given is None:
        return None
    found: dict[str, str] = {}
    for value in given:
        name, equals, source = value.partition("=")
        name, source = (name, source) if equals else (Path(value).stem, value)
        if name in found:
            raise RecipeError(f"--data {value}: the name {name!r} stands twice; use NAME=SOURCE")
        found[name] = source
    return found


def tuning_of(**given: Any) -> dict[str, Any] | None:
    """Settings of the training that were given, or None."""
    return {name: value for name, value in given.items() if value is not None} or None


def device_of(name: str) -> str:
    """A torch device by name.

    Raises:
        RecipeError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"--device {name}: no CUDA device here; use cpu")
    return name


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
