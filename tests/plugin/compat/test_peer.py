"""Beside allennlp-models in either order of import, without it, and without AllenNLP."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

NAMES_ARE_OURS = """
from allennlp.data import DatasetReader, DataLoader
from allennlp.models import Model
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.token_embedders import TokenEmbedder

for base, name in [
    (Model, "language_model"),
    (Model, "bidirectional-language-model"),
    (Model, "bidirectional_language_model"),
    (DatasetReader, "simple_language_modeling"),
    (DataLoader, "language_modeling"),
    (Seq2SeqEncoder, "bidirectional_language_model_transformer"),
    (TokenEmbedder, "language_model_token_embedder"),
    (TokenEmbedder, "bidirectional_lm_token_embedder"),
]:
    assert base.by_name(name).__module__.startswith("transformer_elmo."), (base, name)
"""

PEER_IS_WHOLE = """
import allennlp_models.lm
from allennlp_models.lm.models.language_model import LanguageModel
assert LanguageModel.__module__ == "allennlp_models.lm.models.language_model"
# What only they have is theirs still.
assert Model.by_name("masked_language_model").__module__.startswith("allennlp_models.")
"""

WITHOUT_PEER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "allennlp_models":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import transformer_elmo
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("allennlp_models") is None, reason="allennlp-models is not installed"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "import allennlp_models.lm, transformer_elmo" + NAMES_ARE_OURS + PEER_IS_WHOLE,
            marks=needs_peer,
            id="after allennlp-models",
        ),
        pytest.param(
            "import transformer_elmo" + NAMES_ARE_OURS + PEER_IS_WHOLE + NAMES_ARE_OURS,
            marks=needs_peer,
            id="before allennlp-models",
        ),
        pytest.param(WITHOUT_PEER + NAMES_ARE_OURS, id="without allennlp-models"),
    ],
)
def test_our_names_win(code):
    result = run(code)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_without_allennlp():
    """The core is there, and names of the plugin say how to get it."""
    result = run(
        "import sys\n"
        "sys.modules['allennlp'] = None\n"
        "import transformer_elmo\n"
        "from transformer_elmo import TransformerElmo\n"
        "assert not hasattr(transformer_elmo, 'nonsense')\n"
        "from transformer_elmo import BidirectionalLanguageModelTokenEmbedder\n"
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()
    assert any(line.startswith("ImportError: ") for line in last), result.stderr
    assert "pip install --no-deps allennlp==2.10.1" in result.stderr
    assert "pip install '.[allennlp]'" in result.stderr


OPTIONAL = "allennlp_models flair onnx onnxruntime onnxscript zstandard"


def test_included_as_a_package_with_nothing_optional():
    """`--include-package` imports every public module, whatever is installed beside AllenNLP."""
    done = run(
        f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL!r}.split()))\n"
        "from allennlp.common.util import import_module_and_submodules\n"
        "import_module_and_submodules('transformer_elmo')\n"
        "import transformer_elmo.integrations.flair\n"
        "try:\n"
        "    from transformer_elmo.integrations.flair import TransformerElmoEmbeddings\n"
        "except ImportError as error:\n"
        '    assert "pip install flair" in str(error)\n'
        "else:\n"
        "    raise AssertionError\n"
    )
    assert done.returncode == 0, done.stderr


def test_included_as_a_package_it_leaves_other_libraries_alone():
    """They take seconds to import, which a training run has no use for."""
    done = run(
        "import sys\n"
        "from allennlp.common.util import import_module_and_submodules\n"
        "import_module_and_submodules('transformer_elmo')\n"
        "print({'flair', 'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules))\n"
    )
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stderr
