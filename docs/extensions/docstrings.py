"""Docstrings as the API page shows them: formulas as MathML, names as links, examples as code.

A Griffe extension that mkdocs.yml names. The sources keep the notation of Sphinx, which reads well in an editor.
"""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

API = Path(__file__).parents[1] / "api.md"
DOCUMENTED = set(re.findall(r"^::: curvprobe\.(\w+)$", API.read_text(encoding="utf-8"), re.MULTILINE))

BLOCK = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
"""A displayed formula: the rest of its line, and the lines that are set in further."""

INLINE = re.compile(r":math:`([^`]+)`")
ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`~?([^`]+)`")


def mathml(formula: str, display: str) -> str:
    """A formula as MathML in which Markdown finds nothing to emphasise."""
    made = convert(" ".join(formula.split()), display=display)
    return made.replace("*", "&#42;").replace("_", "&#95;")


def link(name: str) -> str:
    """A reference to what the page documents, or the name as code."""
    last = name.removeprefix("curvprobe.").split("(")[0]
    return f"[`{last}`][curvprobe.{last}]" if last in DOCUMENTED else f"`{name}`"


def rendered(text: str) -> str:
    """A docstring in Markdown."""
    text = BLOCK.sub(lambda m: f'{m[1]}<div class="formula">{mathml(m[2], "block")}</div>', text)
    text = INLINE.sub(lambda m: f"<span>{mathml(m[1], 'inline')}</span>", text)
    text = ROLE.sub(lambda m: link(m[1]), text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


class Docstrings(Extension):
    """Renders every docstring as it is collected."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rendered(obj.docstring.value)
