"""What lies where, and which modules import which."""

import ast
import re
import runpy
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Dict, Iterable, Set

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_elmo"
TOP = {"pyproject.toml", "README.md", "LICENSE", "transformer_elmo", "training_config"}
TOP |= {"docs", "tests", "scripts"}

# A room imports only itself and those before it.
ROOMS = [
    ["errors", "with_allennlp", "files", "memory"],
    ["text"],
    ["nn.kernels"],
    ["nn"],
    ["pretrained.legacy"],
    ["pretrained"],
    ["inference"],
    ["integrations"],
    ["commands"],
    ["torchvision_stand_in"],
    ["plugin", "plugin.training", "plugin.compat"],
]
# Doors: what puts rooms together.
ENTRANCES = {"", "__main__", "plugin", "with_allennlp"}

MAIN_LINE = ("text", "nn", "pretrained", "inference", "plugin")
OFF_THE_MAIN_LINE = ("pretrained.legacy", "commands", "plugin.compat")


@cache
def imports() -> Dict[str, Set[str]]:
    """From each module to those of the package that it imports."""
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    paths = {name.removesuffix("__init__").rstrip("."): path for name, path in paths.items()}
    graph: Dict[str, Set[str]] = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        ours = {n.removeprefix("transformer_elmo.") for n in found if "transformer_elmo" in n}
        # What is imported is a module, or something in one.
        graph[name] = {n if n in paths else n.rpartition(".")[0] for n in ours} - {name}
    return graph


def inside(module: str, rooms: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in rooms)


def room_of(module: str) -> int:
    names = {name: number for number, names in enumerate(ROOMS) for name in names}
    return names[max((name for name in names if inside(module, [name])), key=len)]


def among_the_main_line(module: str) -> bool:
    others = {"plugin.commands", "pretrained.archive"}
    return inside(module, MAIN_LINE) and not inside(module, {*OFF_THE_MAIN_LINE, *others})


# From a module to one that it may not import.
RULES = {
    "a room imports only those before it": lambda module, imported: (
        # The version, which the package has.
        not (module in ("commands.cli", "commands.embed") and imported == "")
        and room_of(imported) > room_of(module)
    ),
    "the core has one door to the plugin": lambda module, imported: (
        inside(imported, ["plugin"]) and not inside(module, ["plugin"])
    ),
    "the main line stands without the rest": lambda module, imported: (
        among_the_main_line(module) and inside(imported, OFF_THE_MAIN_LINE)
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports(rule):
    arrows = [(module, other) for module, others in imports().items() for other in others]
    wrong = [arrow for arrow in arrows if arrow[0] not in ENTRANCES and RULES[rule](*arrow)]
    assert not wrong


def test_no_circle():
    # It imports the plugin inside functions alone.
    graph = {**imports(), "with_allennlp": {"errors"}}
    # Whatever is imported, the package itself comes first: it is no part of the order.
    graph = {name: names - {""} for name, names in graph.items() if name}
    TopologicalSorter(graph).prepare()
    for names in ROOMS:
        for name in names:
            assert any(inside(module, [name]) for module in graph), name


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
