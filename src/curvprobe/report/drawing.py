"""Altair, where it is installed."""

from __future__ import annotations

from typing import Any

from curvprobe.errors import MissingExtraError


def needed() -> Any:
    """The package, or how to get it."""
    try:
        import altair
    except ImportError as error:
        raise MissingExtraError("a report needs altair: pip install 'curvprobe[report]'") from error
    return altair
