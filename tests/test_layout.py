"""The rules of the layout, as .github/CONTRIBUTING.md tells them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_elmo"
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
TREE = GUIDE.partition("    transformer_elmo/\n")[2].partition("\n\n")[0]
TOP = {"pyproject.toml", "README.md", "transformer_elmo", "training_config", "tests", "scripts"}

# From the top: a room imports those above it.
ROOMS = """
    errors files progress text nn model_config experiments model_folder elmo legacy archives
    archived_models config_files commands integrations cli __main__ torchvision_stand_in plugin
""".split()
# torch brings filelock along.
EVERYWHERE = {"torch", "numpy", "overrides", "safetensors", "filelock"}
# What else a room may import at the top of its modules.
BESIDE = {
    "errors": {"allennlp"},
    "plugin": {"allennlp", "spacy", "requests"},
    "integrations": {"flair", "spacy", "onnx", "onnxruntime", "onnxscript"},
}
# The command that `python -m transformer_elmo.legacy` is another name of.
EXCEPTIONS = {("legacy", "cli")}

MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "files" not in path.relative_to(PACKAGE).parts and path != PACKAGE / "__init__.py"
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path, top=False):
    """The modules that a file imports, anywhere or at its top, where any code of it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if top and node in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "transformer_elmo":
                yield from (f"transformer_elmo.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_rooms_above_it(path):
    room = room_of(path)
    for name in imported(path):
        first, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if first != "transformer_elmo" or other in ("", "__version__", "TransformerElmo"):
            continue
        allowed = ROOMS.index(other) <= ROOMS.index(room) or (room, other) in EXCEPTIONS
        assert allowed, f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_needs_four_packages(path):
    allowed = EVERYWHERE | BESIDE.get(room_of(path), set()) | {"transformer_elmo"}
    for name in imported(path, top=True):
        first = name.partition(".")[0]
        assert first in allowed or first in sys.stdlib_module_names, name


def test_the_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP


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
