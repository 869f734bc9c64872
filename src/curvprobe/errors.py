"""What this package refuses with: every message says what came, what was expected and what to do.

All are :class:`ValueError` too, and those that Python has a name for (a wrong type, a position that does not exist, a
package that is not installed) are of that kind as well, so that code which catches Python's own keeps working. An
eigenvalue computation that does not converge is no error: its result says so, with a :class:`ConvergenceWarning`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CurvprobeError(ValueError):
    """What this package refuses, with the remedy; nothing else that goes wrong is one.

    Attributes:
        check: which check of a model, its loss and its data refused; empty where it was none of these.
    """

    check: str = ""


class ArgumentError(CurvprobeError):
    """An argument that makes no sense."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong type."""


class PositionError(ArgumentError, IndexError):
    """An example that does not exist."""


class CannotProbeError(CurvprobeError):
    """A model, a loss or data that cannot be probed as they are."""


class CannotProbeTypeError(CannotProbeError, TypeError):
    """A model, a loss or data of a kind that cannot be probed."""


class UserCodeError(CannotProbeError, RuntimeError):
    """The user's model, loss or data raised; the error itself is the cause."""


class NotFiniteError(CannotProbeError):
    """A loss or a derivative that is not finite where it is asked for."""


class WriteError(CurvprobeError, OSError):
    """A file that cannot be written: the disk is full, or the folder is not to be written to."""


class MissingExtraError(CurvprobeError, ImportError):
    """A package that an optional part needs is not installed."""


class RankError(CurvprobeError, RuntimeError):
    """Another process of the same analysis has failed."""


class LostError(RankError):
    """Another process of the same analysis has gone without a word, or cannot be reached."""


@contextmanager
def checking(check: str) -> Iterator[None]:
    """Name the check that refuses within the block, where nothing within has named it closer."""
    try:
        yield
    except CurvprobeError as error:
        error.check = error.check or check
        raise
