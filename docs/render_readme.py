"""Rewrite the generated parts of README.md: the source tree and the table of families."""

import ast
import re
import sys
from pathlib import Path

from moegraft.families.table import families_table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def first_sentence(module: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].strip()


def source_tree() -> str:
    """One line per package, and folded below it one line per module: path and first sentence."""
    package = ROOT / "src" / "moegraft"
    packages, modules = [], []
    for module in sorted(package.rglob("*.py"), key=_order):
        relative = module.relative_to(package)
        if module.name != "__init__.py":
            entry = "  " * len(relative.parts) + module.name
            modules.append((entry, first_sentence(module)))
        elif relative.parent.parts:
            entry = "  " * len(relative.parent.parts) + relative.parent.name + "/"
            packages.append((entry, first_sentence(module)))
            modules.append((entry, first_sentence(module)))
    return (
        f"{_listing(packages)}\n\n<details>\n<summary>Every module in a line</summary>\n\n"
        f"{_listing(modules)}\n\n</details>"
    )


def _listing(entries: list[tuple[str, str]]) -> str:
    width = max(len(entry) for entry, _ in entries) + 1
    lines = [f"{entry:<{width}}{sentence}" for entry, sentence in entries]
    return "\n".join(["```text", "src/moegraft/", *lines, "```"])


def render(text: str) -> str:
    """`text` with every generated part made anew."""
    for name, content in (("tree", source_tree()), ("families", families_table())):
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = marked.sub(lambda m, content=content: m[1] + content.strip() + m[2], text)
    return text


def _order(module: Path) -> tuple[tuple[str, str], ...]:
    *folders, name = module.parts
    return (*(("1", folder) for folder in folders), ("0", "" if name == "__init__.py" else name))


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = render(old)
    README.write_text(new, encoding="utf-8")
    sys.stdout.write("README.md is up to date\n" if new == old else "README.md rewritten\n")
