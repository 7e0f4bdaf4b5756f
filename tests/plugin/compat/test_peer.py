"""Beside allennlp-models, and with nothing beside AllenNLP."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from allennlp.data import DataLoader, DatasetReader
from allennlp.models import Model
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.token_embedders import TokenEmbedder

ROOT = Path(__file__).resolve().parents[3]


def test_our_names_win_and_theirs_stay():
    """Imported after this package; the other orders are in `test_with_allennlp`."""
    theirs = pytest.importorskip("allennlp_models.lm").models.language_model.LanguageModel
    assert theirs.__module__ == "allennlp_models.lm.models.language_model"
    assert Model.by_name("masked_language_model").__module__.startswith("allennlp_models.")
    names: Any = [
        (Model, "language_model"),
        (Model, "bidirectional-language-model"),
        (Model, "bidirectional_language_model"),
        (DatasetReader, "simple_language_modeling"),
        (DataLoader, "language_modeling"),
        (Seq2SeqEncoder, "bidirectional_language_model_transformer"),
        (TokenEmbedder, "language_model_token_embedder"),
        (TokenEmbedder, "bidirectional_lm_token_embedder"),
    ]
    for base, name in names:
        assert base.by_name(name).__module__.startswith("transformer_elmo."), (base, name)


OPTIONAL = """
import sys
import allennlp.commands  # It looks for some of them itself.
OPTIONAL = "allennlp_models flair onnx onnxruntime onnxscript zstandard".split()
wanted = []

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in OPTIONAL:
            wanted.append(name)
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from allennlp.common.util import import_module_and_submodules
import_module_and_submodules("transformer_elmo")
import transformer_elmo.integrations.flair
assert not wanted, wanted
from allennlp.models import Model
assert Model.by_name("language_model").__module__.startswith("transformer_elmo.")
try:
    from transformer_elmo.integrations.flair import TransformerElmoEmbeddings
except ImportError as error:
    assert "pip install flair" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_included_as_a_package_with_nothing_optional():
    """`--include-package` imports every public module, and none of what takes seconds to import."""
    done = subprocess.run(
        [sys.executable, "-c", OPTIONAL], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
