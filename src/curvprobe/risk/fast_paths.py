"""Fast ways to numbers that a slow way gives too: used once the two have been seen to agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

DIRECTIONS_TOGETHER = "directions of divided weights together"
"""The only fast way where weights are divided: all processes try it together, and give it up together."""

Compared = tuple[Tensor, Tensor]
"""What the fast way gives, and the slow one."""


@contextmanager
def quietly() -> Iterator[None]:
    """While a fast way is tried: torch warns of what it has no batching rule for, and of its own first forward mode.

    Of an operation within one of its decompositions, such as the derivative of PReLU, it prints that past Python's
    warnings. That has a switch, which cannot be read: afterwards it is on, as torch has it.
    """
    print_of_fallbacks = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    print_of_fallbacks(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        print_of_fallbacks(True)


@dataclass
class FastPaths:
    """Which fast ways hold for a model and its loss; each is compared with the slow one on every part of the data.

    Batching rules and compilers may fail on an operation, or be wrong for it without a word. Whatever they raise, the
    slow way works.

    Attributes:
        verdicts: by name, whether the fast way is used; False is for good.
        compared: names and parts of the data that have been compared.
        none: whether there is none here that one process may try or give up by itself.
    """

    verdicts: dict[str, bool] = field(default_factory=dict)
    compared: set[tuple[str, Hashable]] = field(default_factory=set)
    none: bool = False

    def hold(
        self,
        name: str,
        kind: Hashable,
        compare: Callable[[], Compared],
        *,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> bool:
        """Whether the fast way ``name`` is right here; ``compare`` runs both ways, once for a part of the data.

        Args:
            name: of the fast way.
            kind: of what it is used on: type, shapes and which examples, by which it might go another way.
            compare: gives both results.
            rtol, atol: as of :func:`difference`.
        """
        if self.open(name) and (name, kind) not in self.compared:
            self.verdicts[name] = difference(compare, rtol=rtol, atol=atol) is None
            self.compared.add((name, kind))
        return self.open(name)

    def open(self, name: str) -> bool:
        """Whether the fast way ``name`` may be tried: it has not been given up."""
        return (not self.none or name == DIRECTIONS_TOGETHER) and self.verdicts.get(name, True)

    def give_up(self, name: str) -> None:
        """From now on the slow way, here: the fast one has failed on something new."""
        self.verdicts[name] = False

    def take_up(self, name: str) -> None:
        """The fast way again: it was not what failed."""
        self.verdicts.pop(name, None)


def difference(compare: Callable[[], Compared], *, rtol: float | None = None, atol: float | None = None) -> str | None:
    """What speaks against the fast way, or None: every number must be within ``atol + rtol |slow|``.

    None for ``rtol`` is what rounding leaves of derivatives in their type, for ``atol`` the same of the largest number.
    """
    try:
        with quietly():
            fast, slow = compare()
    except Exception as error:  # whatever a batching rule or a compiler raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finite = slow.isfinite()
    if not torch.equal(fast.isfinite(), finite):
        return "it is not finite where the slow way is, or the other way round"
    fast, slow = fast[finite], slow[finite]
    if rtol is None:
        rtol = 1e-3 if slow.dtype == torch.float32 else 1e-8
    if atol is None:
        atol = rtol * float(slow.abs().max()) if slow.numel() else 0.0
    return None if torch.allclose(fast, slow, rtol=rtol, atol=atol) else "it disagrees with the slow way"
