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
    """One line per module: path and first sentence."""
    package = ROOT / "src" / "moegraft"
    lines = ["src/moegraft/"]
    for module in sorted(package.rglob("*.py"), key=_order):
        relative = module.relative_to(package)
        depth = len(relative.parts)
        if module.name == "__init__.py":
            if depth > 1:
                folder = "  " * (depth - 1) + relative.parts[-2] + "/"
                lines.append(f"{folder:<24}{first_sentence(module)}")
            continue
        name = "  " * depth + module.name
        lines.append(f"{name:<24}{first_sentence(module)}")
    return "```text\n" + "\n".join(lines) + "\n```"


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
