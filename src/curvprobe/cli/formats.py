"""What a pipeline's own tools read of a run: JUnit's XML, and annotations of GitHub Actions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

from curvprobe.analysis.answer import Answer
from curvprobe.errors import ArgumentError
from curvprobe.runtime.store import write_atomically

JUNIT = "junit.xml"


class ReportFormat(StrEnum):
    """How conditions and doubts are reported besides the text."""

    JUNIT = "junit"
    GITHUB = "github"


Outcomes = dict[str, str | None]
"""Why each condition of --fail-if is met, by its text; None where it is not."""


def write_junit(folder: Path, answer: Answer, outcomes: Outcomes) -> Path:
    """A test case for every condition, which fails where it is met, and one for everything that the numbers rest on,
    skipped where that is in doubt: only conditions fail a run."""
    doubts = [mark for mark in answer.trust if mark.word != "yes"]
    suite = ElementTree.Element(
        "testsuite",
        name="curvprobe",
        tests=str(len(outcomes) + len(answer.trust)),
        failures=str(sum(reason is not None for reason in outcomes.values())),
        skipped=str(len(doubts)),
    )
    for text, reason in outcomes.items():
        case = ElementTree.SubElement(suite, "testcase", classname="curvprobe.fail-if", name=text)
        if reason is not None:
            ElementTree.SubElement(case, "failure", message=reason)
    for mark in answer.trust:
        case = ElementTree.SubElement(suite, "testcase", classname="curvprobe.trust", name=mark.name)
        if mark.word == "yes":
            ElementTree.SubElement(case, "system-out").text = mark.said
        else:
            ElementTree.SubElement(case, "skipped", message=str(mark))
    ElementTree.SubElement(suite, "system-out").text = str(answer)
    path = folder / JUNIT
    try:
        write_atomically(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    except OSError as error:  # a finished run may lie where nothing can be written
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}") from error
    return path


def workflow_commands(answer: Answer, outcomes: Outcomes) -> list[str]:
    """Workflow commands: an error for every condition that is met, a warning for every doubt, and the first finding."""
    lines = [_command("error", f"{text}: {reason}") for text, reason in outcomes.items() if reason is not None]
    lines += [_command("warning", str(mark)) for mark in answer.trust if mark.word != "yes"]
    return [*lines, _command("notice", answer.findings[0])]


def _command(level: str, message: str) -> str:
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{level} title=curvprobe::{escaped}"
