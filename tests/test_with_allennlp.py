"""What this package registers is there in every order of imports, and AllenNLP only on demand."""

import pytest

from transformer_elmo import ConfigurationError, TransformerElmo

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


REFUSING = """
import sys
asked = set()

class Refusing:
    def find_spec(self, name, path=None, target=None):
        top, frame = name.partition(".")[0], sys._getframe(1)
        while frame is not None and "transformer_elmo" not in frame.f_globals["__name__"]:
            # What others need is their affair; and one may ask what is installed.
            asks = frame.f_globals["__name__"] == "importlib.util"
            if asks or "-packages" in frame.f_code.co_filename:
                return
            frame = frame.f_back
        if refused(top):
            asked.add(top)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
"""
OPTIONAL = """
def refused(name):
    return name in "allennlp_models flair onnx onnxruntime onnxscript zstandard".split()
"""


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
        # It imports every module, and needs nothing optional for that.
        pytest.param(
            OPTIONAL + REFUSING + INCLUDED + CHECK + "assert not asked, asked",
            id="--include-package",
        ),
        pytest.param(PLUGINS + CHECK, id=".allennlp_plugins"),
        pytest.param(PEER + OURS + CHECK, id="allennlp-models before"),
        pytest.param(OURS + PEER + CHECK, id="allennlp-models after"),
        pytest.param("import transformer_elmo.plugin\n" + PEER + CHECK, id="the plugin itself"),
    ],
)
def test_every_order_of_imports(code, lm_archive, tmp_path, run_python):
    if PEER in code:
        pytest.importorskip("allennlp_models")
    (tmp_path / ".allennlp_plugins").write_text("transformer_elmo\n")
    run_python(code, lm_archive)


def test_what_works_without_it(lm_archive, tmp_path, run_python):
    """With nothing but what the core declares, and no try to import more."""
    (tmp_path / "text").write_text("the ___ sat\n", encoding="utf-8")
    code = """
def refused(name):
    declared = "transformer_elmo torch numpy safetensors filelock jinja2".split()
    return name not in {*declared, *sys.stdlib_module_names}

from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main

archive = sys.argv[1]
vectors = TransformerElmo.open(archive).embed(["the cat sat", ["a", "dog"]], "all")
assert [v.shape for v in vectors] == [(3, 3, 64), (3, 2, 64)]
# torch's compiler takes longer to import than a model to open.
assert "torch._dynamo" not in sys.modules
for command in (["export", archive, "folder"], ["score", "folder", "text"],
                ["fill", archive, "text"], ["perplexity", archive, "text"],
                ["embed", archive, "text", "v.npz", "--top"],
                ["report", archive, "--output", "page.html"]):
    assert main(command) == 0, command
assert main(["score", "nothing", "text"]) == 1
assert asked <= {"tqdm"}, asked
"""
    run_python(REFUSING + code, lm_archive)


@pytest.mark.slow
def test_what_needs_it(lm_archive, tmp_path, run_python):
    (tmp_path / "text").write_text("the cat sat\n", encoding="utf-8")
    code = """
import sys
import transformer_elmo
from transformer_elmo.commands.cli import main

def embed(output, overrides):
    return main(["embed", sys.argv[1], "text", output, "--top", "-o", overrides])

assert "allennlp" not in sys.modules
assert embed("one.npz", '{"model.dropout": 0.5}') == 0
assert "allennlp" in sys.modules
# An error of AllenNLP's own is one message, too.
assert embed("two.npz", '{"model.contextualizer.input_dim": "wide"}') == 1
elmo = transformer_elmo.TransformerElmo.open(sys.argv[1], tokenizer="letters_digits")
assert elmo.words("a1") == ["a", "1"]
assert transformer_elmo.LanguageModel.__module__ == "transformer_elmo.plugin.language_model"
"""
    run_python(code, lm_archive)


def test_where_it_is_not_installed(lm_archive, run_python):
    """Names of the plugin say what to install, and a tokenizer does when it is used."""
    code = """
import sys
sys.modules["allennlp"] = None
import pytest, transformer_elmo
from transformer_elmo import *
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
"""
    run_python(code, lm_archive)


@pytest.mark.parametrize(
    "broken, module", [("transformers", "types.ModuleType('empty')"), ("torchvision", "None")]
)
def test_a_broken_one_is_a_warning(broken, module, run_python):
    """AllenNLP's names say why there are none, and what may help."""
    code = f"""
import sys, types, warnings
import pytest, transformer_elmo
sys.modules[{broken!r}] = {module}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with pytest.raises(ImportError, match="can't be imported"):
        transformer_elmo.LanguageModel
print(*(w.message for w in caught))
"""
    said = run_python(code)
    assert "TransformerElmo works" in said
    hint = "Try python -m transformer_elmo.torchvision_stand_in."
    assert (hint in said) == (broken == "torchvision")


def test_errors_are_value_errors(lm_archive):
    with pytest.raises(ValueError) as caught:
        TransformerElmo.open(lm_archive, overrides='{"model.contextualizer.input_dim": "wide"}')
    assert type(caught.value) is ConfigurationError
