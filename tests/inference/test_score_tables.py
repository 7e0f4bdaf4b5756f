import math

from transformer_elmo.inference.scores import SentenceScores, WordScores

FORWARD = WordScores([None, math.log(0.25), -20.0], [None, 3, 1234])
BACKWARD = WordScores([math.log(0.5), math.log(0.125), None], [1, 2, None])


def scores(tokens, **views):
    return SentenceScores(tokens, [False, True, False], FORWARD, **views)


def test_a_table_in_a_terminal():
    table = str(scores(["<S>", "käse", "東京"], backward=BACKWARD, combined=FORWARD))
    assert table.splitlines() == [
        "token   forward   rank  backward  rank    both   rank",
        "<S>                       0.5000     1",
        "käse *   0.2500      3    0.1250     2  0.2500      3",
        "東京      2e-09  1,234                   2e-09  1,234",
        "perplexity 419.78 over 2 tokens, 1 of them unknown (*)",
    ]


def test_columns_stand_below_each_other_in_any_script():
    lines = str(scores(["a", "นี่", "हिन्दी"])).splitlines()
    assert lines[0] == "token  forward   rank"
    # Marks that stand above or below their letters take no column.
    assert lines[2] == "นี่ *     0.2500      3"


def test_one_direction_alone():
    table = str(scores(["<S>", "a", "b"]))
    assert "backward" not in table and "both" not in table


def test_html_is_escaped_and_finds_its_direction():
    html = scores(["<S>", "שלום", "a&b"], backward=BACKWARD)._repr_html_()
    assert '<bdi dir="auto">&lt;S&gt;</bdi>' in html
    assert '<bdi dir="auto">שלום</bdi> *' in html
    assert "a&amp;b" in html and html.count("<tr>") == 4
    assert "perplexity" in html
