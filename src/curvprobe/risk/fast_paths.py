"""Fast ways to numbers that a slow way gives too: used once the two have been seen to agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Compared = tuple[Tensor, Tensor]
"""What the fast way gives, and the slow one."""


@dataclass
class FastPaths:
    """Which fast ways hold for a model and its loss; each is compared with the slow one at its first use.

    Batching rules and compilers may fail on an operation, or be wrong for it without a word. Whatever they raise, the
    slow way works.

    Attributes:
        verdicts: by name, whether the fast way is used.
    """

    verdicts: dict[str, bool] = field(default_factory=dict)

    def hold(self, name: str, compare: Callable[[], Compared], *, tolerance: float | None = None) -> bool:
        """Whether the fast way ``name`` is right here; ``compare`` runs both ways and is called once.

        Args:
            name: of the fast way.
            compare: gives both results.
            tolerance: relative difference that counts as rounding; None is that of derivatives in their type.
        """
        if name not in self.verdicts:
            self.verdicts[name] = difference(compare, tolerance) is None
        return self.verdicts[name]

    def give_up(self, name: str) -> None:
        """From now on the slow way, here: the fast one has failed on something new."""
        self.verdicts[name] = False


def difference(compare: Callable[[], Compared], tolerance: float | None = None) -> str | None:
    """What speaks against the fast way, or None."""
    try:
        fast, slow = compare()
    except Exception as error:  # whatever a batching rule or a compiler raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if tolerance is None:
        tolerance = 1e-3 if slow.dtype == torch.float32 else 1e-8
    finite = slow.isfinite()
    if not torch.equal(fast.isfinite(), finite):
        return "it is not finite where the slow way is, or the other way round"
    apart, size = float((fast - slow)[finite].norm()), float(slow[finite].norm())
    return None if apart <= tolerance * size else "it disagrees with the slow way"
