"""Forest, heatmap, cube and waterfall say the numbers of the summary."""

import re
from xml.etree import ElementTree

import pytest

from moegraft.report.cube import cubes
from moegraft.report.forest import forest_plots
from moegraft.report.heatmap import find_pairs, heatmaps
from moegraft.report.summary import find_cell, summarize
from moegraft.report.svg import Scale, direction, scale_over, shorten, text
from moegraft.report.waterfall import waterfall
from moegraft.report.words import points

MATH, READING = "nano_math/cot", "nano_reading/0-shot"


@pytest.fixture(scope="module")
def section(paper_summary):
    return paper_summary["subset"]


@pytest.fixture(scope="module")
def four_components(tmp_path_factory, build_run):
    """A factorial over router and rest: the donor is its last corner."""
    run = build_run(tmp_path_factory.mktemp("rest"), num_items=40)
    for name in [*run.joinpath("items").iterdir()]:
        if name.name not in ("host", "donor", "router"):
            renamed = {"experts": "rest"}.get(name.name)
            if renamed:
                name.rename(name.with_name(renamed))
            else:
                for path in sorted(name.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                name.rmdir()
    return summarize(run)["subset"]


def titles(picture: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(picture).iter() if e.tag == "title"]


def test_a_forest_names_every_configuration_with_its_simultaneous_interval(section):
    plots = forest_plots(section, "host")
    assert len(plots) == 4
    said = titles(plots[0])
    assert len(said) == 8
    name = said[0].partition(":")[0]
    condition = re.search(r'aria-label="([^:]*):', plots[0]).group(1)  # pyright: ignore
    test = find_cell(section, name, condition)["against"]["host"]  # pyright: ignore
    low, high = test["simultaneous"]
    assert f"simultaneous [{points(low)}, {points(high)}]" in said[0]


def test_a_forest_fills_what_is_established_only(section):
    math, reading = (
        next(p for p in forest_plots(section, "host") if f'"{name}:' in p)
        for name in (MATH, READING)
    )
    assert 'class="dot gain"' in math
    assert 'class="dot gain"' not in reading
    assert 'class="dot open"' in reading


def test_the_heatmap_is_antisymmetric_and_marks_what_is_established(section):
    pairs = find_pairs(section, MATH)
    assert len(pairs) == 9 * 8
    for (a, b), (value, (low, high)) in pairs.items():
        assert pairs[b, a] == (-value, (-high, -low))
    table = heatmaps(section)[MATH]
    assert table.count('class="same"') == 9
    sure = sum(direction(value, interval) != "open" for value, interval in pairs.values())
    assert table.count(' sure"') == sure > 0


def test_a_cube_has_eight_corners_and_twelve_edges_with_their_differences(section):
    (cube,) = cubes(section, MATH)
    assert cube.count('class="corner"') == 8
    assert cube.count('<line class="edge') == 12
    host, experts = (find_cell(section, name, MATH) for name in ("host", "experts"))
    assert host
    assert experts
    moved = points(experts["score"] - host["score"], sign=True)
    assert any(said.startswith(f"experts on the host: {moved} [") for said in titles(cube))


def test_a_waterfall_leads_from_host_to_donor(section):
    said = titles(waterfall(section, MATH))
    host, donor = (find_cell(section, name, MATH) for name in ("host", "donor"))
    assert host
    assert donor
    names = [one.partition(":")[0] for one in said]
    assert names == [
        "host", "router", "attention", "experts", "all of these", "all else", "donor"
    ]  # fmt: skip
    assert said[0] == f"host: {points(host['score'])} %"
    assert said[-1] == f"donor: {points(donor['score'])} %"


def test_with_the_rest_as_a_factor_the_way_ends_at_the_donor(four_components):
    names = [one.partition(":")[0] for one in titles(waterfall(four_components, MATH))]
    assert names == ["host", "router", "rest", "donor"]
    (square,) = cubes(four_components, MATH)
    assert square.count('class="corner"') == 4
    assert square.count('<line class="edge') == 4


def test_a_run_without_a_factorial_has_neither_cube_nor_waterfall(tmp_path, make_row, put_cell):
    for name in ("host", "donor"):
        put_cell(tmp_path, "items", name, "task", [make_row("a", 1.0), make_row("b", 0.0)])
    section = summarize(tmp_path, write=False)["subset"]
    assert cubes(section, "task") == []
    assert waterfall(section, "task") == ""
    assert len(forest_plots(section, "host")) == 1


def test_scales_have_round_ticks_and_text_is_escaped():
    assert Scale(-0.31, 0.42, 0, 100).ticks() == pytest.approx([-0.2, 0.0, 0.2, 0.4])
    assert scale_over([0.5], 0, 10).ticks()
    scale = scale_over([0.0, 1.0], 10, 20)
    assert 10 < scale(0.0) < scale(1.0) < 20
    assert "<script>" not in text(0, 0, "<script>")
    assert shorten("router+attention+experts+rest") == "router+attention+experts…"
    assert [direction(0.1, (0.05, 0.2)), direction(-0.1, (-0.2, 0.1))] == ["gain", "open"]
