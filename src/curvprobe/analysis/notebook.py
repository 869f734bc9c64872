"""How an answer looks in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from curvprobe.runtime.markup import judged

if TYPE_CHECKING:
    from curvprobe.analysis.answer import Answer

JUDGED = {"within tolerance": "yes", "cannot tell": "doubt", "not within": "no"}
"""The word for a judgement on the tolerance."""


def answer_html(answer: Answer) -> str:
    """The lines of an answer as HTML, with what the numbers rest on as a table."""
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in answer.findings)
    if answer.judgement is not None:
        findings += f"<li>{judged(JUDGED[answer.judgement], answer.tolerance)}</li>"
    trust = "".join(
        f"<tr><td>{escape(mark.name)}</td><td>{judged(mark.word, mark.word)}</td><td>{escape(mark.said)}</td></tr>"
        for mark in answer.trust
    )
    return (
        f"<p><b>{escape(answer.model)}</b></p><ul>{findings}</ul><table><tbody>{trust}</tbody></table>"
        f"<p>next: {escape(answer.advice)}<br>{escape(answer.probe)}</p>"
    )
