"""What lies where, as CONTRIBUTING.md tells it; for which module imports which, `test_rooms`."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_elmo"
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
TREE = GUIDE.partition("    transformer_elmo/\n")[2].partition("\n\n")[0]
TOP = {"pyproject.toml", "README.md", "LICENSE", "transformer_elmo", "training_config"}
TOP |= {"docs", "tests", "scripts"}

MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "files" not in path.relative_to(PACKAGE).parts and path != PACKAGE / "__init__.py"
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_the_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP


def test_what_is_said_of_installing():
    """The package's name is on no index: what anybody could register there isn't named."""
    for path in (*MODULES, PACKAGE / "__init__.py", ROOT / "README.md"):
        assert not re.search(r"pip install\W+transformer[-_]elmo", path.read_text("utf-8")), path


def test_the_tree_in_the_guide_is_the_packages():
    room = PACKAGE
    for name, files in re.findall(r"^ {6}([\w/]+)/ |^ {6,8}([\w., ]+?\.py)\b", TREE, re.MULTILINE):
        room = PACKAGE / name if name else room
        assert room.is_dir(), room
        for file in re.findall(r"\w+\.py", files):
            assert (room / file).exists() or (PACKAGE / file).exists(), f"{room.name}/{file}"
    listed = set(re.findall(r"^ {6}(\w+)", TREE, re.MULTILINE))
    listed |= set(re.findall(r"(\w+)\.py", TREE))
    assert {room_of(path) for path in MODULES} - {"__main__"} <= listed
