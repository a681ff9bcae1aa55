import numpy as np
import pytest

from moegraft.report.routing_figures import (
    _draw_pairings,
    write_diagnosis_figures,
    write_profile_figures,
)

SINGLES = ("router", "attention", "experts", "router+experts", "attention+rest")


def contrast(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1], "p": 0.5}


@pytest.fixture(scope="module")
def diagnosis():
    """The size of OLMoE-1B-7B, two conditions."""
    rng = np.random.default_rng(0)
    frequency = rng.dirichlet(np.ones(64), size=(2, 16)) * 8
    names = ["host", "donor", *SINGLES]

    def measures():
        return {
            name: rng.random((2, 16)).tolist()
            for name in ("overlap", "divergence", "distance", "cosine")
        }

    pairs = [(r, e) for e in ("host", "donor") for r in ("host", "donor")]
    cells = [
        {"router": r, "experts": e, "configuration": "x", "loss": 1.0, "followed": 1.0}
        | {"difference": contrast(0.2 * (r != e))}
        for r, e in pairs
    ]
    entry = {"num_texts": 9, "cells": cells, "mismatch": contrast(0.2)}
    return {
        "layers": list(range(16)),
        "configurations": names,
        "routing": {name: {"frequency": frequency.tolist()} for name in names},
        "agreement": {
            name: {parent: measures() for parent in ("host", "donor") if parent != name}
            for name in names
        },
        "coadaptation": [
            entry | {"others": others, "condition": condition}
            for others in ("host", "donor")
            for condition in ("all", "nano_math/cot", "nano_science/5-shot")
        ],
    }


@pytest.fixture(scope="module")
def figures(diagnosis, tmp_path_factory):
    return write_diagnosis_figures(diagnosis, tmp_path_factory.mktemp("figures"))


def test_every_figure_is_written_for_light_and_dark_pages(figures):
    paths = figures
    assert set(paths) == {
        f"{name}{ending}"
        for name in ("routing-frequency", "routing-agreement", "coadaptation")
        for ending in (".svg", ".png", "-dark.svg")
    }
    for path in paths.values():
        assert path.suffix == ".png" or path.stat().st_size < 300_000  # the HTML page inlines SVG


def test_figures_name_what_they_show(figures):
    paths = figures
    agreement = paths["routing-agreement.svg"].read_text()
    for name in ("router", "experts", "the other parent", "against the host"):
        assert f">{name}<" in agreement
    assert "attention+rest" not in agreement  # only the 2 x 2 needs it
    pairings = paths["coadaptation.svg"].read_text()
    assert "mismatch +0.200 [0.100, 0.300]" in pairings
    assert "nano_math/cot" in pairings
    assert "all conditions" in pairings


def test_one_condition_needs_no_mean_over_conditions(diagnosis):
    entries = [e for e in diagnosis["coadaptation"] if e["condition"] in ("all", "nano_math/cot")]
    text = _draw_pairings(entries, "svg", dark=False).decode()
    assert "nano_math/cot" in text
    assert "all conditions" not in text


def test_a_profile_has_a_map_per_domain_up_to_six(tmp_path):
    rng = np.random.default_rng(0)
    domains = [f"domain{i}" for i in range(8)]
    frequency = rng.random((8, 4, 8)).tolist()
    profile = {"domains": domains, "layers": [1, 2, 3, 4], "frequency": frequency}
    written = write_profile_figures(profile, tmp_path)
    text = written["routing-frequency.svg"].read_text()
    assert [name in text for name in domains] == [True] * 6 + [False] * 2
    again = write_profile_figures(profile, tmp_path / "again")
    for name, path in written.items():
        assert path.read_bytes() == again[name].read_bytes()
