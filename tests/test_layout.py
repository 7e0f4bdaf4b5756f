"""What lies where; for which module imports which, see `test_rooms`."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_elmo"
TOP = {"pyproject.toml", "README.md", "LICENSE", "transformer_elmo", "training_config"}
TOP |= {"docs", "tests", "scripts"}


def test_the_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP


def test_what_is_said_of_installing():
    """The package's name is on no index: what anybody could register there isn't named."""
    for path in (*PACKAGE.rglob("*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"):
        assert not re.search(r"pip install\W+transformer[-_]elmo", path.read_text("utf-8")), path


def test_the_list_of_files_is_of_today():
    """`python scripts/tree.py` writes it."""
    script = runpy.run_path(str(ROOT / "scripts" / "tree.py"))
    assert script["PAGE"].read_text("utf-8").partition(script["BEFORE"])[2] == script["tree"]()
