"""What this package registers is there in every order of imports, and AllenNLP only on demand."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_elmo
from transformer_elmo import ConfigurationError, TransformerElmo

ROOT = Path(transformer_elmo.__file__).parents[1]


def run(code, *arguments, cwd=ROOT):
    seed = str(random.randrange(2**32))
    print("PYTHONHASHSEED", seed)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CHECK = """
import sys
from allennlp.common import Registrable
from allennlp.data import DataLoader
from allennlp.models import Model
from allennlp.modules import TokenEmbedder
for base, name in ((Model, "language_model"), (DataLoader, "language_modeling"),
                   (TokenEmbedder, "bidirectional_lm_token_embedder")):
    assert base.by_name(name).__module__.startswith("transformer_elmo."), (base, name)
from transformer_elmo.plugin.patches import patches
assert patches()
"""
OPENS = """
model = load_archive(sys.argv[1]).model
assert type(model).__module__ == "transformer_elmo.plugin.language_model", type(model)
"""
PEER = "import allennlp_models.lm\n"
OURS = "import transformer_elmo\n"
PLUGINS = "from allennlp.common.plugins import import_plugins\nimport_plugins()\n"
INCLUDED = (
    "from allennlp.common.util import import_module_and_submodules\n"
    "import_module_and_submodules('transformer_elmo')\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(OURS + CHECK, id="ours first"),
        pytest.param("import allennlp\n" + OURS + CHECK, id="AllenNLP first"),
        pytest.param("from transformer_elmo import LanguageModel\n" + CHECK, id="a public name"),
        pytest.param(
            OURS + "import sys\nfrom allennlp.models import load_archive\n" + OPENS,
            id="ours, then load_archive",
        ),
        pytest.param(INCLUDED + CHECK, id="--include-package"),
        pytest.param(PLUGINS + CHECK, id=".allennlp_plugins"),
        pytest.param(PEER + OURS + CHECK, id="allennlp-models before"),
        pytest.param(OURS + PEER + CHECK, id="allennlp-models after"),
        pytest.param("import transformer_elmo.plugin\n" + PEER + CHECK, id="the plugin itself"),
        pytest.param("from transformer_elmo import *\nLanguageModel\n" + CHECK, id="all names"),
    ],
)
def test_every_order_of_imports(code, lm_archive, tmp_path):
    if PEER in code:
        pytest.importorskip("allennlp_models")
    (tmp_path / ".allennlp_plugins").write_text("transformer_elmo\n")
    run(code, lm_archive, cwd=tmp_path)


QUIET = """
import sys
import transformer_elmo
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main

def imported():
    return "allennlp" in sys.modules or "spacy" in sys.modules

"""


def test_commands_without_it(lm_archive, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n", encoding="utf-8")
    run(
        QUIET
        + """
archive, text, folder, vectors = sys.argv[1:]
for command in (["export", archive, folder], ["score", folder, text], ["score", archive, text],
                ["embed", archive, text, vectors, "--top"],
                ["report", archive, "--output", vectors + ".html"]):
    assert main(command) == 0, command
    assert not imported(), command
assert main(["score", archive + ".no", text]) == 1 and not imported()
""",
        *(lm_archive, tmp_path / "text.txt", tmp_path / "folder", tmp_path / "vectors.npz"),
    )


@pytest.mark.slow
def test_what_needs_it(lm_archive, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n", encoding="utf-8")
    said = run(
        QUIET
        + """
archive, text, vectors = sys.argv[1:]
override = '{"model.dropout": 0.5}'
assert main(["embed", archive, text, vectors, "--top", "-o", override]) == 0
assert imported()
# An error of AllenNLP's own is one message, too.
wrong = '{"model.contextualizer.input_dim": "wide"}'
assert main(["embed", archive, text, vectors + ".npz", "--top", "-o", wrong]) == 1
elmo = TransformerElmo.open(archive, tokenizer="letters_digits")
print(elmo.words("a1"), transformer_elmo.LanguageModel.__name__)
""",
        *(lm_archive, tmp_path / "text.txt", tmp_path / "vectors.npz"),
    )
    assert said.splitlines()[-1] == "['a', '1'] LanguageModel"


WITHOUT = """
import sys
sys.modules["allennlp"] = None
import pytest, transformer_elmo
from transformer_elmo import *
"""


def test_where_it_is_not_installed(lm_archive):
    """Names of the plugin say what to install, and a tokenizer does when it is used."""
    run(
        WITHOUT
        + """
with pytest.raises(ImportError, match="LanguageModel needs AllenNLP, which isn't installed"):
    transformer_elmo.LanguageModel
with pytest.raises(ImportError, match="no-deps allennlp==2.10.1"):
    from transformer_elmo import DenseSparseAdam
elmo = transformer_elmo.TransformerElmo.open(sys.argv[1], tokenizer="spacy")
assert len(elmo.embed([["the", "cat"]])[0]) == 2
with pytest.raises(transformer_elmo.ConfigurationError, match="tokenizer 'spacy', which needs"):
    elmo.embed(["the cat"])
with pytest.raises(transformer_elmo.ConfigurationError, match="need AllenNLP"):
    transformer_elmo.TransformerElmo.open(sys.argv[1], overrides="{}")
""",
        lm_archive,
    )


@pytest.mark.parametrize(
    "broken, module", [("transformers", "types.ModuleType('empty')"), ("torchvision", "None")]
)
def test_a_broken_one_is_a_warning(broken, module):
    """AllenNLP's names say why there are none, and what may help."""
    said = run(
        f"import sys, types, warnings\nsys.modules[{broken!r}] = {module}"
        """
import transformer_elmo
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        transformer_elmo.LanguageModel
    except ImportError as error:
        assert "can't be imported" in str(error)
    else:
        raise AssertionError
print(*(w.message for w in caught))
"""
    )
    assert "TransformerElmo works" in said
    hint = "Try python -m transformer_elmo.torchvision_stand_in."
    assert (hint in said) == (broken == "torchvision")


def test_errors_are_value_errors(lm_archive):
    with pytest.raises(ValueError) as caught:
        TransformerElmo.open(lm_archive, overrides='{"model.contextualizer.input_dim": "wide"}')
    assert type(caught.value) is ConfigurationError
