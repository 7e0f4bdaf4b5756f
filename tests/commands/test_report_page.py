"""The report as a page: its markup, its colours and, where there is a browser, its layout."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from transformer_elmo.commands.report.curves import Table, chart, charts_of, ticks
from transformer_elmo.commands.report.facts import Fact, TrainingLog
from transformer_elmo.commands.report.page import SHADES, Mixture, Passage, Report, page
from transformer_elmo.inference.scores import SentenceScores, WordScores

ENGLISH = "The first boats came back to the old harbour before the long rain of that winter ."
ARABIC = "عادت القوارب الأولى إلى الميناء القديم ( 25 قاربا ) قبل المطر الطويل في ذلك الشتاء ."
CHINESE = "第一批 船 在 那 年 冬天 的 雨 以前 回到 了 老 港口 。"
HINDI = "पहली नावें उस साल की सर्दी की बारिश से पहले पुराने बंदरगाह लौट आईं ।"
HOSTILE = [
    *r"""<script>alert(1)</script> "'&amp; </span></div> https://example.org/path""".split(),
    *("\u202eoverride", "\u2066\u2066isolate", "\u2069\u2069end", "nul\0", "\x1b[31m"),
    *("", "\u200b", "\u2028", "\ud800", "👩‍👩‍👧‍👦"),
    *("a" * 3000, "नि" * 1500, "e" + "\u0301" * 200, "\ufdfa" * 40, "path/" * 20),
]


def passage(words, bidirectional=True, unknown=(), top=True):
    """A sentence between boundary tokens, with numbers of no meaning."""
    tokens = ["<S>", *words, "</S>"]
    count = len(tokens)

    def view(skipped):
        log_probs = [None if n == skipped else -0.9 * (n % 17) for n in range(count)]
        ranks = [None if p is None else n + 1 for n, p in enumerate(log_probs)]
        likeliest = [(word, 0.5 / (n + 1)) for n, word in enumerate(tokens[:4])]
        likeliest.append(("@@UNKNOWN@@", 1e-9))
        tops = [None if p is None else likeliest for p in log_probs] if top else []
        return WordScores(log_probs, ranks, tops)

    scores = SentenceScores(
        tokens,
        [token in unknown for token in tokens],
        view(0),
        view(count - 1) if bidirectional else None,
    )
    return Passage(scores, 1, count - 1)


FULL = Report(
    "Training run <b>&",
    [Fact("best validation perplexity", "42.3200", "over all words, " + "x" * 300)],
    [Fact("train_data_path", "/a/path/" + "very-long-" * 30), Fact("n" * 200, "</dd><script>")],
    ["There is \0 <i>no</i> remark"],
    [
        passage(ENGLISH.split(), unknown=["harbour"]),
        passage(ARABIC.split()),
        passage(CHINESE.split()),
        passage(HINDI.split()),
        passage(HOSTILE, unknown=HOSTILE),
        passage(ENGLISH.split(), bidirectional=False),
    ],
    "/a/text/" + "very-long-" * 30,
    [Mixture("token_embedder_<elmo>", [0.2, 0.0, 0.8], 1.25), Mixture("m" * 300, [1 / 7] * 7, 1.0)],
    [Table("Results", ["", "A"], [["<b>" * 90, "c" * 300]])],
    [
        chart("perplexity", {"<i>": {0: 900.0, 3: 42.0}, "n" * 99: {0: 8.0}}),
        chart("x", {"": {1: 0}}),
    ],
    [Table("", ["epoch"], [["0"]])],
)


class Checker(HTMLParser):
    """Whether every tag is closed in its turn, and what there is."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def heat_map(one):
    """What stands on a page for one sentence."""
    text = page(Report("a", passages=[one]))
    (found,) = re.findall(r'<section class="sentence">.*?</section>', text, re.DOTALL)
    return found


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def test_markup():
    text = page(FULL)
    assert text.encode("utf-8")
    checker = checked(text)
    assert not {"script", "img", "link", "iframe", "i-", "b"} & set(checker.tags)
    names = {name for name, _ in checker.attributes}
    assert not any(name.startswith("on") for name in names) and not names & {"src", "href"}
    ids = [value for name, value in checker.attributes if name == "id"]
    described = [value for name, value in checker.attributes if name == "aria-describedby"]
    assert len(set(ids)) == len(ids) and ids == described
    # A control character would be an error in HTML; those that order text stay in their words.
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
    for found in re.finditer("[\u202a-\u202e\u2066-\u2069]", text):
        assert text.rfind("<bdi", 0, found.start()) > text.rfind("</bdi>", 0, found.start())
    # What can't be seen is named, and what guides the letters around it is left alone.
    assert "nul\u2400" in text and "U+200B<" in text and "👩‍👩‍👧‍👦" in text
    assert "default-src 'none'" in text
    # The longest bar is as wide as there is room.
    assert re.findall('"bar" style="width:(.*?)%"', text)[:3] == ["25.00", "0.00", "100.00"]
    # Every section stands once, and only if it says something.
    headings = ["By epoch", "How surprising each word is", "Layer weights", "Config"]
    assert re.findall("<h2>(.*?)</h2>", text) == headings
    bare = page(Report("a"))
    checked(bare)
    assert "<h2>" not in bare and "<dl" not in bare and "<h1>a</h1>" in bare


@pytest.mark.parametrize(
    "words, direction", [(ENGLISH, "ltr"), ("( 25 ) שלום abc", "rtl"), ("12 !", "ltr")]
)
def test_directions(words, direction):
    # The boundary tokens have a Latin letter, and don't count; nor is the language known.
    (opening,) = re.findall('<div class="words[^>]*>', heat_map(passage(words.split())))
    assert f' dir="{direction}" lang=""' in opening


def test_brackets_and_numbers_stand_as_the_sentence_does():
    text = heat_map(passage(ARABIC.split()))
    assert '<bdi dir="rtl">(</bdi>' in text and '<bdi dir="rtl">25</bdi>' in text
    assert "<bdi>القوارب</bdi>" in text
    # What is English is said to be.
    assert text.count('dir="ltr" lang="en"') == 1 + len(ARABIC.split()) + 2


def test_what_a_word_says():
    text = heat_map(passage("a b".split(), unknown=["b"]))
    first, _, second, last = re.split(r'\s(?=<span class="w)', text)[1:]
    assert 'class="w edge"' in first and 'class="w edge"' in last
    assert second.count('<span class="n upper b1">2.6</span>') == 1
    likeliest = "<S> 50 % a 25 % b 17 % </S> 12 % an unknown word 1 in 1,000,000,000"
    assert re.sub(r"\s+", " ", checked(second).text) == (
        "b†2.62.6b Outside the vocabulary: the numbers are those of any such word."
        f" given the words before 17 %, rank 3 likeliest: {likeliest}"
        f" given the words after 17 %, rank 3 likeliest: {likeliest}"
    )
    assert second.count('class="top here"') == 2
    # The note is English, the words in it needn't be.
    assert '<bdi lang="">a</bdi>' in second and 'lang="en"' in second
    # Nothing stands before the first token.
    assert "given the words before There are none." in checked(first).text and "†" not in first


def test_long_sentences_and_one_direction():
    words = [f"w{n}" for n in range(300)]
    text = page(Report("a", passages=[passage(words, bidirectional=False, top=False)]))
    shown = re.findall(r'<span class="c"><bdi>(.*?)</bdi>', text)
    assert shown == ["&lt;S&gt;", *words[:200]] and "the first 200 of its 300 words" in text
    assert "given the words after" not in text and "likeliest:" not in text
    assert "The number under each word" in text and "†" not in text


def test_sentences_without_probabilities():
    log_probs = [None, -math.inf, -1000.0, math.nan, 0.0]
    scores = WordScores(log_probs, [9] * 5, [None, [], [], [("a", math.nan)], []])
    tokens = SentenceScores(list("abcde"), [False] * 5, scores, None)
    text = heat_map(Passage(tokens, 0, 5))
    shown = re.findall('<span class="n lower (.*?)">(.*?)</span>', text)[1:]
    assert [look for look, _ in shown] == ["none", "b8", "b8", "none", "b0"]
    assert [number for _, number in shown] == ["–", "∞", "1442.7", "NaN", "0.0"]
    for said in ("There are none.", "less than 1 in 10¹², rank 9", "NaN, rank 9", "100 %, rank 9"):
        assert said in text
    assert "perplexity" not in text
    nothing = WordScores([None], [None], [])
    assert math.isnan(SentenceScores(["x"], [False], nothing, None).perplexity)


def test_curves():
    lines = {"A": {0: 1000.0, 1: 100.0, 2: 10.0}, "B": {1: 100.0, 2: 10.1}, "C": {2: 10.2}}
    drawn = chart("validation perplexity", lines, {"B": 1, "C": 2})
    first, second, third = drawn.lines
    # Equal steps of a logarithm; names stand in the order of the lines' ends, apart from another.
    assert first.points == [(3.0, 4.0), (50.0, pytest.approx(50.0)), (97.0, 96.0)]
    assert second.points[0] == first.points[1] and first.name == "A 10"
    assert first.top - second.top >= 9 and second.top - third.top >= 9 and first.top <= 96
    assert [text for _, text in drawn.y_ticks] == ["10", "20", "50", "100", "200", "500", "1,000"]
    assert [text for _, text in drawn.x_ticks] == ["0", "1", "2"]
    minutes = [text for _, text in chart("time", {"": {4: 4000.0}}).y_ticks]
    assert minutes == ["0.0 s", "0:20:00", "0:40:00", "1:00:00"]
    for low, high, is_log in ((0, 1e-5, False), (40, 41, True), (1e-3, 1e300, True)):
        found = ticks(low, high, is_log)
        assert 2 <= len(found) <= 7 and low <= found[0] < found[-1] <= high * 1.001


def test_numbers_that_cannot_be_drawn():
    for epoch, name in (
        ({"training_loss": 3, "validation_loss": math.nan}, "training 3"),
        ({"training_perplexity": 0.0, "validation_perplexity": math.inf}, "training 0"),
    ):
        (only,) = charts_of({"a": TrainingLog({}, [{"epoch": 0, **epoch}])})
        assert [line.name for line in only.lines] == [name]


def luminance(colour):
    """By the Web Content Accessibility Guidelines, as their contrast is."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable_on_every_shade_by_day_and_by_night():
    for scheme in page(Report("a")).split("prefers-color-scheme: dark"):
        shades = re.findall(r"\.b(\d) { background: (#\w{6}); color: (#\w{6}); }", scheme)
        assert [int(number) for number, _, _ in shades] == list(range(SHADES))
        for _, *colours in shades:
            low, high = sorted(map(luminance, colours))
            assert (high + 0.05) / (low + 0.05) >= 4.5


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MEASURE = """
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, room = root.clientWidth;
  const selection = frame.contentWindow.getSelection(), found = {copied: [], beyond: []};
  for (const words of page.querySelectorAll('.words')) {
    selection.selectAllChildren(words);
    found.copied.push(selection.toString().trim());
  }
  for (const word of page.querySelectorAll('[tabindex]')) {
    word.focus();
    const note = word.querySelector('.d').getBoundingClientRect();
    found.beyond.push(root.scrollWidth - room, note.right - room, -note.left);
  }
  document.querySelector('#found').textContent = JSON.stringify(found);
}
"""


@pytest.mark.skipif(BROWSER is None, reason="There is no browser.")
@pytest.mark.parametrize("width", [390, 980])
def test_layout(width, tmp_path):
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<!doctype html><meta charset=utf-8><script>{MEASURE}</script><pre id=found></pre>"
        f'<iframe style="border:0;width:{width}px;height:800px" onload="measure(this)" '
        f'srcdoc="{html.escape(page(FULL))}"></iframe>',
        encoding="utf-8",
    )
    options = f"--headless --no-sandbox --disable-gpu --user-data-dir={tmp_path / 'browser'}"
    options += " --disable-background-networking --virtual-time-budget=20000 --dump-dom"
    command = [str(BROWSER), *options.split(), outer.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    said = re.search('<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    if said is None:
        pytest.skip(f"The browser doesn't run here: {done.stderr[-300:]}")
    found = json.loads(html.unescape(said[1]))
    # Nothing is wider than the window, with any word's note open; and a copy is a line of words.
    assert max(found["beyond"]) <= 0 and len(found["beyond"]) > 100
    assert found["copied"][:4] == [ENGLISH, ARABIC, CHINESE, HINDI]
