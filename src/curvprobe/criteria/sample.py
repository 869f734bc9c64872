"""Every example's loss, gradient and Hessian in the coordinates of a subspace: what all criteria are computed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from curvprobe.errors import ArgumentError
from curvprobe.numerics.rows import resolve_rows
from curvprobe.numerics.strata import deviations, whole_size
from curvprobe.runtime.plain import brief
from curvprobe.runtime.store import write_atomically

FILE_VERSION = "1"
"""Of the file of a saved sample."""

_TENSORS = ("loss", "weight", "gradient", "hessian")


@dataclass(frozen=True, eq=False)
class ProjectedSample:
    """Per-example statistics of a sample in a subspace, float64 on the CPU.

    Attributes:
        loss: (n,) mean loss of every example at the solution.
        weight: (n,) number of loss terms.
        gradient: (n, D), ``U^T g_i``.
        hessian: (n, D, D), ``U^T H_i U``, symmetric.
        digests: content hash of every example; empty when unknown.
        design: int (n, 2), where the examples were drawn of a larger sample: for each its stratum, and how many of all
            are in that. The weights are then what each stands for, and a constant in the losses makes their mean that
            of all. None for a sample of its own.

    Example:
        >>> import torch
        >>> sample = ProjectedSample(torch.ones(4), torch.ones(4), torch.zeros(4, 2), torch.zeros(4, 2, 2))
        >>> len(sample), sample.dim, len(sample[:3]), sample.truncate(1).gradient.shape
        (4, 2, 3, torch.Size([4, 1]))
    """

    loss: Tensor
    weight: Tensor
    gradient: Tensor
    hessian: Tensor
    digests: tuple[str, ...] = ()
    design: Tensor | None = None

    __repr__ = brief

    def __post_init__(self) -> None:
        for name in _TENSORS:
            given = torch.as_tensor(getattr(self, name), device="cpu")
            object.__setattr__(self, name, given.detach().double().contiguous())
        n, dim = self.gradient.shape if self.gradient.dim() == 2 else (-1, -1)
        shapes = [tuple(t.shape) for t in (self.loss, self.weight, self.gradient, self.hessian)]
        if shapes != [(n,), (n,), (n, dim), (n, dim, dim)] or n < 1:
            raise ArgumentError(
                f"loss, weight, gradient and hessian have shapes {shapes}; expected (n,), (n,), (n, D), (n, D, D)"
            )
        if self.digests and len(self.digests) != n:
            raise ArgumentError(f"{len(self.digests)} digests came for {n} examples")
        if self.design is not None and self.design.shape != (n, 2):
            raise ArgumentError(f"the design has shape {tuple(self.design.shape)}; expected ({n}, 2)")

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def dim(self) -> int:
        """D."""
        return self.gradient.shape[1]

    @property
    def size(self) -> int:
        """How many examples it stands for: k, where they are the sample of a risk."""
        return len(self) if self.design is None else whole_size(self.design)

    def expect_whole(self) -> None:
        """Refuse drawn examples where each stands for itself."""
        if self.design is not None:
            raise ArgumentError(
                f"the sample is {len(self)} examples that were drawn of {self.size}; without candidates, and for "
                "another order than 2, expected all of them"
            )

    def deviations(self, terms: Tensor) -> Tensor:
        """What each example adds to the error of the mean of terms (n, J) for having been drawn; zero where all are
        there."""
        return torch.zeros_like(terms) if self.design is None else deviations(terms, self.weight, self.design)

    def __getitem__(self, selection: int | slice | Sequence[int] | Tensor) -> ProjectedSample:
        """Some of the examples; a single position gives a sample of one."""
        rows = resolve_rows(selection, len(self))
        digests = tuple(self.digests[i] for i in rows) if self.digests else ()
        return ProjectedSample(self.loss[rows], self.weight[rows], self.gradient[rows], self.hessian[rows], digests)

    def truncate(self, dim: int) -> ProjectedSample:
        """The same examples in the span of the first ``dim`` basis vectors."""
        if not 1 <= dim <= self.dim:
            raise ArgumentError(f"dim is {dim}; expected 1 to {self.dim}")
        return ProjectedSample(
            self.loss, self.weight, self.gradient[:, :dim], self.hessian[:, :dim, :dim], self.digests, self.design
        )

    def save(self, path: str | Path) -> None:
        """Write the sample to a safetensors file, for work on a machine without the model."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        if self.design is not None:
            tensors["design"] = self.design
        write_atomically(
            Path(path), save(tensors, metadata={"version": FILE_VERSION, "digests": json.dumps(self.digests)})
        )

    @classmethod
    def load(cls, path: str | Path) -> ProjectedSample:
        """What :meth:`save` has written.

        Raises:
            ValueError: where there is no such file, or another kind of file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                found = file.metadata() or {}
                if found["version"] != FILE_VERSION:
                    raise ValueError(
                        f"it has version {found['version']}; this version of curvprobe reads {FILE_VERSION}"
                    )
                digests = json.loads(found["digests"])
                design = file.get_tensor("design") if "design" in file.keys() else None  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ArgumentError(
                f"no projected sample could be read from {str(path)!r}: {error}; expected a file of "
                "ProjectedSample.save, or a run's folder for curvprobe.load"
            ) from error
        return cls(**tensors, digests=tuple(digests), design=design)

    def mean(self) -> ProjectedSample:
        """The weighted mean of the examples, as one example that carries their total weight."""
        share = self.weight / self.weight.sum()
        return ProjectedSample(
            (share @ self.loss)[None],
            self.weight.sum()[None],
            (share @ self.gradient)[None],
            torch.einsum("n,nde->de", share, self.hessian)[None],
        )
