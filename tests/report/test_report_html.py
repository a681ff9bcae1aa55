"""The page as a browser gets it; the last test lets a real one run its script."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from moegraft.report import write_report

ATTACK = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028"
ACTS = """
document.querySelectorAll('.item').forEach((item) => { item.open = true; });
document.querySelector('[role=tab]')?.dispatchEvent(
  new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
"""
"""What a reader does: open every item, press the right arrow on the first tab."""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""


class Page(HTMLParser):
    """Collects tags, attributes that could load something, ids, and what links point to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            held = (value or "").startswith(("#", "data:image/"))
            if key in ("src", "href", "xlink:href", "data", "action") and not held:
                self.loads.append((tag, key, value))
            if key == "href" and tag == "a":
                self.links.append((value or "").removeprefix("#"))
            if key == "id":
                self.ids.append(value)


@pytest.fixture(scope="module")
def page(tmp_path_factory, build_run) -> str:
    run = build_run(tmp_path_factory.mktemp("run"), num_items=25)
    return write_report(run)["report.html"].read_text()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> str:
    """A report in which every text that a model or a data set gives tries to become a script."""
    run = tmp_path_factory.mktemp("attacked")
    row = {"score": 1.0, "prompt": "p", "output": ATTACK, "extracted": ATTACK, "gold": ATTACK}
    for name in ("host", "donor", ATTACK.replace("/", "")):
        (run / "items" / name).mkdir(parents=True)
        rows = [row | {"item": item} for item in ("a", "b")]
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (run / "items" / name / "task.jsonl").write_text(text)
    (run / "prompts").mkdir()
    (run / "prompts" / "task.jsonl").write_text(json.dumps({"item": "a", "prompt": ATTACK}) + "\n")
    (run / "env.json").write_text(json.dumps({"host": ATTACK, "donor": "b", "notes": [ATTACK]}))
    return write_report(run)["report.html"].read_text()


def test_the_page_loads_nothing_and_has_unique_ids(page):
    found = Page(page)
    assert found.loads == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert {"link", "iframe", "object"}.isdisjoint(found.tags)
    assert found.tags.count("script") == 2
    assert "default-src 'none'" in page
    assert len(page) < 5_000_000


def test_the_verdict_comes_first_and_every_picture_is_there(page):
    sections = re.findall(r'<section id="([a-z-]+)">', page)
    assert sections == [
        "verdict",
        "against-parents",
        "pairs",
        "components",
        "items-explorer",
        "tables",
        "noise-floor",
        "appendix",
        "provenance",
    ]
    labels = re.findall(r'<svg class="own"[^>]*aria-label="([^"]*)"', page)
    assert sum("simultaneous intervals" in label for label in labels) == 2 * 4
    assert sum("every composition" in label for label in labels) == 4
    assert sum("Shapley" in label for label in labels) == 4
    assert page.count('class="heat"') == 4


def test_figures_follow_the_pages_colours(page):
    drawn = "".join(re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL))
    assert "currentColor" in drawn
    assert "#1f2328" not in drawn
    assert "<style" not in drawn  # it would hold for the whole page


def test_text_of_models_and_prompts_cannot_become_part_of_the_page(attacked):
    found = Page(attacked)
    assert found.tags.count("script") == 2
    assert "img" not in found.tags
    assert "document.title='broken'</script>" not in attacked
    start = attacked.index('id="items">') + len('id="items">')
    items = json.loads(attacked[start : attacked.index("</script>", start)])
    item = items["task"]["items"][0]
    assert item["cells"]["host"]["output"] == ATTACK
    assert item["prompt"] == ATTACK


def test_the_papers_style_keeps_pictures_and_leaves_its_two_tables(tmp_path, build_run):
    page = write_report(build_run(tmp_path, num_items=20), style="paper")["report.html"].read_text()
    assert re.findall(r'<h3 id="([a-z0-9_-]+)">', page) == ["table2"]
    assert 'id="appendix"' not in page


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_a_browser_shows_tabs_and_items_and_runs_no_foreign_script(attacked, page, tmp_path):
    def shown(text: str, name: str) -> str:
        (tmp_path / name).write_text(text.replace("</body>", f"<script>{ACTS}</script></body>"))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
        flags += ["--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path / name}"]
        done = subprocess.run([CHROMIUM, *flags], capture_output=True, check=False, timeout=120)
        return done.stdout.decode()

    dom = shown(attacked, "attacked.html")
    assert "<title>moegraft: attacked" in dom
    assert Page(dom).tags.count("img") == 0
    assert "&lt;/script&gt;&lt;script&gt;document.title='broken'" in dom
    dom = shown(page, "page.html")
    assert dom.count('role="tab"') >= 10
    first, second = re.findall(r'<button[^>]*role="tab"[^>]*>', dom)[:2]
    assert 'aria-selected="false"' in first
    assert 'aria-selected="true"' in second
    assert dom.count('class="item"') == 25
    assert dom.count('class="side"') == 50
