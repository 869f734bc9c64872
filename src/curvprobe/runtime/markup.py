"""Results as small pieces of HTML, for notebooks; all that they say is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

COLOURS = {"yes": "#2e7d5b", "doubt": "#b26a00", "no": "#b3402a"}
"""Of the words that judge."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A table with notes under it.

    Example:
        >>> table(["a"], [["1 < 2"]])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1 &lt; 2</td></tr></tbody></table>'
    """
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{said}"


def judged(word: str, text: str) -> str:
    """A text in the colour of the word that judges it."""
    return f'<span style="color: {COLOURS[word]}; font-weight: 600">{escape(text)}</span>'
