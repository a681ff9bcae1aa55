"""`moegraft diagnose` and `profile`: what happens inside, and why."""

from pathlib import Path
from typing import Annotated

import typer

from moegraft.cli.options import DeviceMapOption, parse_device_map
from moegraft.cli.steps import draw_figures, say, show_steps, write_content
from moegraft.cli.terminal import stdout_console, write_json
from moegraft.errors import CheckpointError, RecipeError

_Field = Annotated[list[str] | None, typer.Option("--field", help="Of .jsonl records; repeatable.")]
_TaskData = Annotated[
    Path | None, typer.Option(help="Folder with the tasks' data as local JSON lines.")
]
_Include = Annotated[
    list[Path] | None, typer.Option(help="Folder with more task files; repeatable.")
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
_Json = Annotated[bool, typer.Option("--json", help="Data for machines on stdout.")]


def diagnose(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of `sweep`.")],
    *,
    limit: Annotated[int, typer.Option(help="Items per condition that are read.")] = 200,
    conditions: Annotated[
        list[str] | None, typer.Option("--condition", help="Of the run; repeatable.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or task to read instead; NAME=SOURCE; repeatable."),
    ] = None,
    field: _Field = None,
    max_tokens: Annotated[int, typer.Option(help="Of each --texts.")] = 20_000,
    data: _TaskData = None,
    include: _Include = None,
    device: _Device = "auto",
    device_map: DeviceMapOption = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward pass.")] = None,
    as_json: _Json = False,
) -> None:
    """Say why transfers help or harm: routing, drift, and router-expert co-adaptation."""
    from moegraft.cli.diagnose_tables import show_diagnosis
    from moegraft.evals.execution import Execution
    from moegraft.report.routing_figures import write_diagnosis_figures
    from moegraft.sweep.diagnose_run import Material, diagnose_run

    material = Material(
        limit=limit,
        conditions=tuple(conditions or ()),
        texts=tuple(texts or ()),
        fields=tuple(field or ("text",)),
        max_tokens=max_tokens,
    )
    execution = Execution(
        device=device,
        device_map=parse_device_map(device_map),
        data_dir=data,
        include=tuple(include or ()),
        batch_tokens=batch_tokens,
    )
    with show_steps("texts read") as on_step:
        found = diagnose_run(run_dir, material, execution, on_step=on_step)
    draw_figures(lambda: write_diagnosis_figures(found, run_dir / "figures"), run_dir)
    if as_json:
        write_json(found)
    else:
        show_diagnosis(stdout_console(), found)
        say(f"{run_dir / 'diagnose.json'} and {run_dir / 'figures'} written")


def profile(
    checkpoint: Annotated[str, typer.Argument(help="Folder, org/name[@revision] or nano:NAME.")],
    *,
    data: Annotated[
        list[str],
        typer.Option(
            help="File, folder, task or hub:OWNER/NAME: a domain; NAME=SOURCE; repeatable."
        ),
    ],
    donor: Annotated[str | None, typer.Option(help="For --configuration.")] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Such as router+experts of --donor; default: CHECKPOINT.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of each domain.")] = 100_000,
    window: Annotated[int, typer.Option(help="Texts of files are cut to so many tokens.")] = 1024,
    limit: Annotated[int, typer.Option(help="Items of a task that are read.")] = 500,
    field: _Field = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template/--no-chat-template", help="For tasks.")
    ] = True,
    task_data: _TaskData = None,
    include: _Include = None,
    device: _Device = "auto",
    device_map: DeviceMapOption = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 4096,
    out: Annotated[
        Path | None, typer.Option(help="A folder for profile.json and the figures.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Count how a checkpoint routes texts: frequency, mass, entropy and dead experts by domain."""
    from moegraft.cli.diagnose_tables import show_profile
    from moegraft.evals.execution import dtype_on
    from moegraft.evals.texts import read_domains
    from moegraft.report.routing_figures import write_profile_figures
    from moegraft.runtime import Host
    from moegraft.runtime.probe import profile_texts
    from moegraft.transfer.live import composed

    _check_profile(donor, configuration, max_tokens=max_tokens, window=window, limit=limit)
    devices = parse_device_map(device_map)
    host = Host.load(
        checkpoint,
        {} if donor is None else {"donor": donor},
        device=device,
        device_map=devices,
        dtype=dtype_on(device, dtype, devices),
    )
    if host.tokenizer is None:
        raise CheckpointError(f"{checkpoint}: no tokenizer, and texts cannot be read without one")
    domains = read_domains(
        data,
        host.tokenizer,
        window=window,
        max_tokens=max_tokens,
        limit=limit,
        fields=tuple(field or ("text",)),
        data_dir=task_data,
        include=tuple(include or ()),
        chat_template=chat_template,
    )
    total = sum(len(text.ids) for texts in domains.values() for text in texts)
    done = 0
    with show_steps("tokens read") as on_step, composed(host, configuration or "host") as model:

        def count(domain: str, num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            on_step(done, total)

        counted = profile_texts(
            model,
            host.checkpoint.family,
            {name: [text.ids for text in texts] for name, texts in domains.items()},
            firsts={name: [text.first for text in texts] for name, texts in domains.items()},
            batch_tokens=batch_tokens,
            on_step=count,
        )
    found = {
        "schema": 1,
        "checkpoint": checkpoint,
        "donor": donor,
        "configuration": configuration or "host",
        **counted.as_dict(),
    }
    if out is not None:
        write_content(out / "profile.json", found)
        draw_figures(lambda: write_profile_figures(found, out), out)
    if as_json:
        write_json(found)
    else:
        show_profile(stdout_console(), found)


def _check_profile(donor: str | None, configuration: str | None, **numbers: int) -> None:
    if (donor is None) != (configuration is None):
        raise RecipeError("profile: --donor and --configuration go together")
    for name, number in numbers.items():
        if number < 2:
            flag = name.replace("_", "-")
            raise RecipeError(f"--{flag}: expected a number of at least 2, got {number}")
