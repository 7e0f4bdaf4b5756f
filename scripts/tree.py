"""
Every file of the package in a line, out of the docstrings, into docs/architecture.md.

    python scripts/tree.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_elmo"
PAGE = ROOT / "docs" / "architecture.md"
BEFORE = "\n## Every file\n"
ROOMS = ["text", "nn", "pretrained", "inference", "integrations", "commands", "plugin"]


def tree() -> str:
    """A Markdown list a room: its modules, each with its docstring's first sentence."""
    rooms: dict[str, list[str]] = {"": [], **{room: [] for room in ROOMS}}
    # A folder's own files come before the folders in it.
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (str(path.parent), path.name)):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sentence = re.split(r"\n\n|(?<!al)\.(?=\s|$)", said)[0].rstrip(":")
        name = path.relative_to(PACKAGE).as_posix()
        if sentence:
            line = f"- `{name}`: {' '.join(sentence.split())}\n"
            rooms.setdefault(name.rpartition("/")[0].partition("/")[0], []).append(line)
    return "".join(f"\n### {room or 'The top'}\n\n{''.join(rooms[room])}" for room in rooms)


if __name__ == "__main__":
    prose = PAGE.read_text(encoding="utf-8").partition(BEFORE)[0]
    PAGE.write_text(prose + BEFORE + tree(), encoding="utf-8")
