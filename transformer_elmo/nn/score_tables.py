"""What a language model says about a sentence, as a table for people."""

import math
import unicodedata
from html import escape
from typing import List, NamedTuple, Optional, Sequence

# Characters that stand above, below or between others.
_WITHOUT_WIDTH = {"Mn", "Me", "Cf"}


class Row(NamedTuple):
    """
    # Attributes

    token : `str`
    is_unknown : `bool`
        Whether the model can predict it only as "unknown".
    cells : `List[str]`
        A probability and a rank for each view.
    """

    token: str
    is_unknown: bool
    cells: List[str]


class ScoreTable(NamedTuple):
    """
    # Attributes

    views : `List[str]`
    rows : `List[Row]`
    summary : `str`
    """

    views: List[str]
    rows: List[Row]
    summary: str

    def to_text(self) -> str:
        """For a terminal."""
        tokens = [row.token + (" *" if row.is_unknown else "") for row in self.rows]
        width = max(map(_width, ["token", *tokens]), default=0)
        titles = [title for view in self.views for title in (view, "rank")]
        widths = [
            max(map(len, [title, *(row.cells[column] for row in self.rows)]))
            for column, title in enumerate(titles)
        ]

        def line(token: str, cells: Sequence[str]) -> str:
            padded = token + " " * (width - _width(token))
            return "  ".join([padded, *(c.rjust(w) for c, w in zip(cells, widths))]).rstrip()

        lines = [line("token", titles)]
        lines += [line(token, row.cells) for token, row in zip(tokens, self.rows)]
        return "\n".join([*lines, self.summary])

    def to_html(self) -> str:
        """For a notebook."""
        titles = [f'<th colspan="2">{view}: probability, rank</th>' for view in self.views]
        rows = []
        for row in self.rows:
            mark = " *" if row.is_unknown else ""
            cells = "".join(f"<td>{cell}</td>" for cell in row.cells)
            rows.append(f'<tr><th><bdi dir="auto">{escape(row.token)}</bdi>{mark}</th>{cells}</tr>')
        return (
            f"<table><thead><tr><th>token</th>{''.join(titles)}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table><p>{escape(self.summary)}</p>"
        )


def cells_of(log_prob: Optional[float], rank: Optional[int]) -> List[str]:
    """A probability and a rank in few digits; nothing where there is nothing to say."""
    if log_prob is None or rank is None:
        return ["", ""]
    probability = math.exp(log_prob)
    return [f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.0e}", f"{rank:,}"]


def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(
        0
        if unicodedata.category(character) in _WITHOUT_WIDTH
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )
