from allennlp.common.plugins import import_plugins
from allennlp.predictors import Predictor

from transformer_elmo.plugin.predictor import RENAMED


def test_predictors_by_their_old_names(lm_archive, caplog):
    with caplog.at_level("INFO", logger="transformer_elmo"):
        predictor = Predictor.from_path(lm_archive, "sentence-tagger")
    assert type(predictor).__name__ == "TaggerPredictor"
    assert "sentence-tagger of AllenNLP 0.x is sentence_tagger now" in caplog.text


def test_old_names_lead_somewhere():
    import_plugins()
    modern = Predictor.list_available()
    assert set(RENAMED) <= set(modern)
    # Two that are allennlp-models', which may not be installed.
    assert RENAMED["machine-comprehension"] == "reading_comprehension"
    assert RENAMED["sentence-tagger"] in modern
