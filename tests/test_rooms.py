"""The house: which modules import which."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Dict, Iterable, Set

import pytest

import transformer_elmo

PACKAGE = Path(transformer_elmo.__file__).parent

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
    graph = imports()
    # It imports the plugin inside functions alone.
    graph["with_allennlp"] = {"errors"}
    # Whatever is imported, the package itself comes first: it is no part of the order.
    graph = {name: names - {""} for name, names in graph.items() if name}
    TopologicalSorter(graph).prepare()
    for names in ROOMS:
        for name in names:
            assert any(inside(module, [name]) for module in graph), name


ALONE = """
import sys

ALLOWED = {*"transformer_elmo torch numpy safetensors".split(), *sys.stdlib_module_names}

class Refused:
    def find_spec(self, name, path=None, target=None):
        # What torch itself needs is torch's affair.
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename.replace("\\\\", "/")
            if any(f"/site-packages/{top}/" in file for top in ("torch", "numpy", "safetensors")):
                return None
            if "/transformer_elmo/" in file:
                break
            frame = frame.f_back
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
sys.modules["allennlp"] = None
"""

USE = """
from transformer_elmo import TransformerElmo
elmo = TransformerElmo.open(sys.argv[1])
assert not any(map(sys.modules.get, ("allennlp", "spacy", "transformers")))
vectors = elmo.embed(["the cat sat", ["a", "dog"]], "all")
assert [v.shape for v in vectors] == [(3, 3, 64), (3, 2, 64)]
# torch's compiler takes longer to import than a model to open.
assert "torch._dynamo" not in sys.modules
(scores,) = elmo.score(["the cat sat"], top_k=2)
assert len(elmo.fill("the ___ sat", top_k=3)) == 3
assert elmo.perplexity(["the cat sat", "a dog"]) > 1
elmo.save(sys.argv[2])
again = TransformerElmo.open(sys.argv[2])
assert (again.embed(["the cat sat"])[0] == elmo.embed(["the cat sat"])[0]).all()
from transformer_elmo.commands.cli import main
assert main(["score", sys.argv[2], sys.argv[3]]) == 0
"""


def test_the_core_without_allennlp(lm_archive, tmp_path):
    """With nothing but what the core declares, it opens an archive and works with it."""
    (tmp_path / "text.txt").write_text("the cat sat\n")
    done = subprocess.run(
        [
            *(sys.executable, "-c", ALONE + USE, str(lm_archive), str(tmp_path / "folder")),
            str(tmp_path / "text.txt"),
        ],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert '"tokens"' in done.stdout
