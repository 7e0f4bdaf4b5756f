"""Archives that allennlp-models evaluates without this package."""

import subprocess
import sys

import pytest
from allennlp.commands.evaluate import evaluate_from_archive

WITHOUT = """
import sys
sys.modules["transformer_elmo"] = None
import allennlp_models.lm
from allennlp.commands.evaluate import evaluate_from_archive
print(evaluate_from_archive(*sys.argv[1:], cuda_device=-1)["loss"])
"""


@pytest.mark.slow
def test_allennlp_models_evaluates_it_alone(command, lm_archive, tmp_path):
    pytest.importorskip("allennlp_models.lm")
    # Of one length: allennlp-models' losses depend on padding.
    (tmp_path / "text.txt").write_text("the dog ran\nbirds flew on\n")
    archive = tmp_path / "stock.tar.gz"
    changes = command("convert", lm_archive, archive, "--stock")
    assert 'model.type = "bidirectional-language-model"' in changes
    text = str(tmp_path / "text.txt")
    python = [sys.executable, "-c", WITHOUT, str(archive), text]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = evaluate_from_archive(str(lm_archive), text, cuda_device=-1)["loss"]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)
