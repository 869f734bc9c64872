"""One file of HTML from a template, its script and its data, that asks for nothing from anywhere else."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from curvprobe.errors import MissingExtraError
from curvprobe.runtime.plain import plain
from curvprobe.version import __version__


def document(name: str, script: str, data: Any, **words: Any) -> str:
    """The template of this name, filled.

    Args:
        name: of the template, which lies beside this file.
        script: name of the page's script.
        data: what it is given, as plain values.
        words: what the template asks for; all of it is escaped.

    Raises:
        ImportError: without the packages of the extra.
    """
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise MissingExtraError("a report needs more packages: pip install 'curvprobe[report]'") from error
    files = resources.files(__package__)

    def read(file: str) -> str:
        return files.joinpath(file).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html").render(
        **words,
        version=__version__,
        bundle=_script(_bundle(vl_convert)),
        script=_script(read("drawn.js") + read(f"{script}.js")),
        style=_script(read("page.css")),
        data=_json(data),
    )


def _bundle(vl_convert: Any) -> str:
    """Vega, Vega-Lite and vegaEmbed."""
    bundle: str = vl_convert.javascript_bundle()
    return bundle


def _script(text: str) -> Any:
    """What goes between script or style tags as it is: nothing in it ends them."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"<(?=/script|/style|!--)", r"\\x3c", text, flags=re.IGNORECASE))


def _json(value: Any) -> Any:
    """Strict JSON between script tags: what users name may hold tags."""
    import markupsafe

    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return markupsafe.Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))
