"""A precision that isn't there is one message, wherever it is asked for."""

import pytest

from tests.small_lm import model_config
from transformer_elmo import TransformerElmo
from transformer_elmo.commands import cli
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.precision import checked_precision
from transformer_elmo.plugin.token_embedders import BidirectionalLanguageModelTokenEmbedder


@pytest.mark.parametrize("precision, hint", [("int8", "any more.*bfloat16"), ("half", ""), (8, "")])
def test_message(precision, hint):
    with pytest.raises(ConfigurationError, match=f"float32, bfloat16: got {precision!r}.*{hint}"):
        checked_precision(precision)


def test_wherever_it_is_asked_for(lm_archive, make_model, tmp_path, capsys):
    for ask in (
        lambda: TransformerElmo.open(lm_archive, device="cpu", precision="int8"),
        lambda: BidirectionalLanguageModelTokenEmbedder(str(lm_archive), precision="int8"),
        lambda: make_model(**model_config(precision="int8")),
    ):
        with pytest.raises(ConfigurationError, match=r'no "int8" any more'):
            ask()
    text, output = tmp_path / "text", tmp_path / "vectors.npz"
    text.write_text("a sentence\n", encoding="utf-8")
    for command in (
        ("embed", lm_archive, text, output, "--average"),
        ("score", lm_archive, text),
    ):
        try:
            code: object = cli.main([*map(str, command), "--precision", "int8"])
        except SystemExit as end:
            code = end.code
        error = capsys.readouterr().err
        assert code and 'no "int8" any more' in error and "Traceback" not in error
    assert not output.exists()
