"""Titled sections of text and columns, and how they are set: as plain text, or on a terminal."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 80
"""Characters in a line of plain text."""

_INDENT = 2


@dataclass(frozen=True)
class Columns:
    """Rows of words and numbers under a header; all but the columns named in ``words`` are set to the right.

    Attributes:
        header: (C,); empty strings leave it out.
        rows: of C cells each.
        words: positions of the columns that hold words, which may be broken where the line is too short.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Section:
    """A title, and under it paragraphs and columns."""

    title: str
    body: tuple[str | Columns, ...]


def rendered(sections: list[Section]) -> RenderableType:
    """The sections for a console of rich."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for i, section in enumerate(sections):
        parts.append(Text("\n" * (i > 0) + section.title, style="bold"))
        parts += [Padding(_part(part), (0, 0, 0, _INDENT)) for part in section.body]
    return Group(*parts)


def _part(part: str | Columns) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if isinstance(part, str):
        return Text(part)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(part.header), header_style="dim")
    for i, name in enumerate(part.header):
        words = i in part.words
        table.add_column(Text(name), justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for row in part.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def plain(sections: list[Section]) -> str:
    """The sections as a text of lines of at most ``WIDTH`` characters."""
    generator = random.getstate()  # rich draws from it when it is imported
    try:
        from rich.console import Console
    finally:
        random.setstate(generator)
    console = Console(width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(rendered(sections))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))
