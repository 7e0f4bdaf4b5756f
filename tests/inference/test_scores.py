import math

import pytest
import torch
from torch.nn import functional as F

from tests.small_lm import WORDS, random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo.inference import scores as scoring
from transformer_elmo.inference.scores import SentenceScores, WordScores, score_places
from transformer_elmo.nn.kernels import softmax as token_losses


@pytest.mark.parametrize("block, places", [(2**22, 1024), (40, 7), (1, 3)])
def test_streaming_is_the_same_function(monkeypatch, block, places):
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", block)
    monkeypatch.setattr(scoring, "PLACES_AT_ONCE", places)
    torch.manual_seed(0)
    weight, bias = torch.randn(23, 5), torch.randn(23)
    targets = torch.randint(0, 22, (12,))
    everywhere, somewhere = torch.ones(12, dtype=torch.bool), torch.arange(12) % 3 > 0
    views = [(torch.randn(12, 5), everywhere), (torch.randn(12, 5), somewhere)]
    forward, backward = (F.linear(rows, weight, bias) for rows, _ in views)
    # Bayes' rule, if the sides say independent things: the prior, Zipf's law, is in both.
    prior = torch.tensor([math.log(math.log((rank + 1) / rank)) for rank in range(1, 24)])
    both = forward + (backward - prior) * somewhere.unsqueeze(-1)
    found = score_places(weight, bias, views, targets, 4, num_words=22)
    for scores, logits in zip(found, (forward, backward, both), strict=True):
        log_probs = logits.log_softmax(-1)
        expected = log_probs.gather(-1, targets.unsqueeze(-1))
        assert torch.allclose(scores.log_probs, expected.squeeze(-1), atol=1e-5)
        assert torch.equal(scores.ranks, 1 + (log_probs[:, :22] > expected + 1e-6).sum(-1))
        top = log_probs[:, :22].topk(4)
        assert torch.equal(scores.top_ids, top.indices + 1)
        assert torch.allclose(scores.top_log_probs, top.values, atol=1e-5)


def test_scores_of_sentences(lm_archive):
    sentences = [*random_sentences(5, seed=8), "the unheard-of cat", "it"]
    elmo = TransformerElmo.open(lm_archive, "cpu")
    found = elmo.score(sentences, top_k=3)
    for sentence, scores in zip(sentences, found):
        length = len(sentence.split())
        assert scores.tokens == ["<S>", *sentence.split(), "</S>"]
        assert scores.num_tokens == length + 1
        assert scores.forward.log_probs[0] is None and scores.backward.log_probs[-1] is None
        assert None not in scores.combined.log_probs
        total = scores.forward_log_prob + scores.backward_log_prob
        assert scores.perplexity == pytest.approx(math.exp(-total / 2 / (length + 1)))
        views = (scores.forward, scores.backward, scores.combined)
        assert scores.forward_perplexity == scores.forward.perplexity
        assert scores.backward_perplexity == scores.backward.perplexity
        (alone,) = elmo.score([sentence.split()])
        for view, other in zip(views, (alone.forward, alone.backward, alone.combined)):
            assert view.ranks == other.ranks
            for log_prob, same, rank, top, token in zip(
                view.log_probs, other.log_probs, view.ranks, view.top, scores.tokens
            ):
                if log_prob is None:
                    assert rank is None and top is None
                    continue
                assert log_prob == pytest.approx(same, abs=1e-5)
                assert len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1] > 0
                assert (rank <= 3) == (token in [word for word, _ in top])
                if rank == 1:
                    assert math.log(top[0][1]) == pytest.approx(log_prob, abs=1e-5)
    assert found[5].out_of_vocabulary == [False, False, True, False, False]
    # No word of the vocabulary is missing, and nothing else is there.
    (everything,) = elmo.score(sentences[:1], top_k=1000)
    assert {w for w, _ in everything.forward.top[1]} == {"@@UNKNOWN@@", "</S>", "<S>", *WORDS[:-3]}
    parts, names = ("log_probs", "ranks"), ("log_prob", "perplexity")
    assert set(alone.to_json()) == {
        *("tokens", "out_of_vocabulary", "num_tokens", "num_out_of_vocabulary", "perplexity"),
        *(f"{view}_{part}" for view in ("forward", "backward", "combined") for part in parts),
        *(f"{view}_{name}" for view in ("forward", "backward") for name in names),
    }
    assert [len(words) for words in found[6].to_json()["combined_top"]] == [3, 3, 3]


FORWARD = WordScores([None, math.log(0.25), -20.0], [None, 3, 1234])
BACKWARD = WordScores([math.log(0.5), math.log(0.125), None], [1, 2, None])


def scored(tokens, **views):
    return SentenceScores(tokens, [False, True, False], FORWARD, **views)


def test_a_table_in_a_terminal():
    table = str(scored(["<S>", "käse", "東京"], backward=BACKWARD, combined=FORWARD))
    assert table.splitlines() == [
        "token   forward   rank  backward  rank    both   rank",
        "<S>                       0.5000     1",
        "käse *   0.2500      3    0.1250     2  0.2500      3",
        "東京      2e-09  1,234                   2e-09  1,234",
        "perplexity 419.78 over 2 tokens, 1 of them unknown (*)",
    ]

    # Marks that stand above or below their letters take no column.
    lines = str(scored(["a", "นี่", "हिन्दी"])).splitlines()
    assert lines[0] == "token  forward   rank" and lines[2] == "นี่ *     0.2500      3"


def test_html_is_escaped_and_finds_its_direction():
    html = scored(["<S>", "שלום", "a&b"], backward=BACKWARD)._repr_html_()
    assert '<bdi dir="auto">&lt;S&gt;</bdi>' in html and "a&amp;b" in html
    assert '<bdi dir="auto">שלום</bdi> *' in html and "perplexity" in html
    assert html.count("<tr>") == 4 and html.count("<th>") == 5 + 3 and html.count("<td>") == 12
