"""Altair, where it is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from curvprobe.errors import MissingExtraError


def needed() -> Any:
    """The package, or how to get it."""
    try:
        import altair
    except ImportError as error:
        raise MissingExtraError("a report needs altair: pip install 'curvprobe[report]'") from error
    return altair


_HELD = "values: "


def inline(values: Sequence[Any]) -> Any:
    """Rows for a chart.

    Altair goes over every value of inline data many times, and takes a name as it is: the rows are written into the
    name, and :func:`specification` puts them in its place.
    """
    return needed().NamedData(name=_HELD + json.dumps(values))


def specification(chart: Any) -> dict[str, Any]:
    """A chart as Vega-Lite, not checked against its schema: that takes long, and a browser does it in the tests."""
    found: dict[str, Any] = _filled(chart.to_dict(validate=False))
    return found


def _filled(part: Any) -> Any:
    """The same with rows where a name stands for them."""
    if isinstance(part, list):
        return [_filled(one) for one in part]
    if not isinstance(part, dict):
        return part
    name = part.get("name")
    if isinstance(name, str) and name.startswith(_HELD):
        return {"values": json.loads(name.removeprefix(_HELD))}
    return {key: _filled(value) for key, value in part.items()}
