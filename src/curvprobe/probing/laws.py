"""Probing laws: where around the solution the increment is looked at.

A law is any object with ``displacements(risk, num_probes, seed)``, which yields flat displacements (N,) from the
solution. What else can be done with it is its ``form``: a law that is Gaussian in a subspace also has ``subspace``,
``scale`` and ``coordinates``, one that is Gaussian in all parameters has ``deviation``, and then the closed form and
controlled Monte Carlo apply to it. The Gaussian laws here have ``antithetic = True``: of an even number
of draws, at least four, every second one is the mirror image of the one before. That takes all odd powers of the
displacement out of the error of a mean; standard errors are then taken over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor

from curvprobe.criteria.draws import check_sigma, in_pairs, mirrored_normal
from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.subspace.spaces import Eigenspace, Subspace

Form = Literal["point", "subspace", "full space", "draws"]
"""What can be done with a law: it is one point; it is Gaussian in a subspace, or in all parameters; or it is known by
its draws only."""


@runtime_checkable
class Probe(Protocol):
    """A probing law."""

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        """Yield ``num_probes`` displacements (N,) from the solution."""
        ...


@dataclass(frozen=True, eq=False)
class SubspaceProbe:
    """``w* + U z``, ``z ~ N(0, diag(sigma^2))``: curvature-aligned when U is the top-D Hessian eigenspace.

    Args:
        subspace: U, D directions.
        sigma: standard deviation in parameter units, scalar or (D,).
    """

    subspace: Subspace
    sigma: float | Tensor
    antithetic: ClassVar[bool] = True
    form: ClassVar[Form] = "subspace"

    def __post_init__(self) -> None:
        if not isinstance(self.subspace, Subspace):
            raise ArgumentTypeError(
                f"subspace is a {type(self.subspace).__name__}; expected a Subspace: Subspace.from_basis(U)"
            )
        check_sigma(self.sigma, self.subspace.dim)

    @property
    def scale(self) -> Tensor:
        """Standard deviation along every direction, float64 (D,)."""
        return check_sigma(self.sigma, self.subspace.dim).expand(self.subspace.dim)

    def coordinates(self, num_probes: int, seed: int) -> Tensor:
        """Draws of z, float64 (S, D)."""
        return mirrored_normal(num_probes, self.subspace.dim, seed) * self.scale

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        """Yield ``num_probes`` displacements (N,) from the solution."""
        subspace, size = self.subspace, risk.num_params
        if subspace.num_params != size:
            raise ArgumentError(f"the subspace lives in {subspace.num_params} parameters and the risk has {size}")
        yield from map(subspace.at, self.coordinates(num_probes, seed))


@dataclass(frozen=True, eq=False)
class LaplaceProbe:
    r"""Gaussian of the Laplace approximation in an eigenspace: ``z_i ~ N(0, 1 / (k (lambda_i + damping)))``.

    Its scale comes from the data: at ``damping = 0``, and where the scaled parameters have the same eigenspace, it does
    not depend on how they are scaled.

    Args:
        subspace: an eigenspace.
        k: number of examples (or loss terms) behind the risk.
        damping: added to every eigenvalue; the sums must be positive.
    """

    subspace: Eigenspace
    k: int
    damping: float = 0.0
    antithetic: ClassVar[bool] = True
    form: ClassVar[Form] = "subspace"

    def __post_init__(self) -> None:
        _ = self.scale

    @property
    def scale(self) -> Tensor:
        """Standard deviation along every direction, float64 (D,)."""
        space = self.subspace
        if not isinstance(space, Eigenspace) or space.matrix == "gradient covariance":
            what = f"an eigenspace of the {space.matrix}" if isinstance(space, Eigenspace) else "no eigenspace"
            raise ArgumentError(
                f"the subspace is {what}; a Laplace law needs the eigenvalues of a curvature: pass what top_eigenspace "
                "returned"
            )
        if self.k < 1:
            raise ArgumentError(f"k is {self.k}; expected at least one example")
        precision = self.k * (self.subspace.eigenvalues + self.damping)
        if not bool((precision > 0).all()):
            raise ArgumentError(
                f"the smallest eigenvalue is {float(self.subspace.eigenvalues.min()):.3g}, damping is {self.damping:g} "
                f"and k is {self.k}; expected k (lambda + damping) > 0: raise damping or lower the dimension"
            )
        return precision.rsqrt()

    def coordinates(self, num_probes: int, seed: int) -> Tensor:
        """Draws of z, float64 (S, D)."""
        return SubspaceProbe(self.subspace, self.scale).coordinates(num_probes, seed)

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        """Yield ``num_probes`` displacements (N,) from the solution."""
        return SubspaceProbe(self.subspace, self.scale).displacements(risk, num_probes, seed)


@dataclass(frozen=True)
class IsotropicProbe:
    """``w* + d``, ``d ~ N(0, sigma^2 I_N)``: all parameters alike.

    Args:
        sigma: standard deviation of every parameter.
    """

    sigma: float
    antithetic: ClassVar[bool] = True
    form: ClassVar[Form] = "full space"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    def deviation(self, risk: EmpiricalRisk) -> float:  # noqa: ARG002 - a law may need it
        """Standard deviation of every parameter."""
        return float(self.sigma)

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        """Yield ``num_probes`` displacements (N,) from the solution."""
        generator = torch.Generator().manual_seed(seed)
        for draw in range(num_probes):
            if draw % 2 == 0 or not in_pairs(num_probes):
                displacement = self.sigma * risk.probed.draw(generator)
                yield displacement
            else:
                yield -displacement


@dataclass(frozen=True)
class NormalizedProbe:
    """Isotropic within each block of parameters, scaled by the block's root mean square: ``sigma`` is relative.

    Layers of different scale are moved in proportion; a block that is all zero stays where it is.

    Args:
        sigma: standard deviation relative to the root mean square of the block.
        by: what a block is: a whole parameter "tensor", or a "filter" of it, the weights of one output unit or channel
            (Li et al. 2018, arXiv:1712.09913); a tensor of one dimension, such as a bias, is one block in either case.
    """

    sigma: float
    by: Literal["tensor", "filter"] = "tensor"
    antithetic: ClassVar[bool] = True
    form: ClassVar[Form] = "full space"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.by not in ("tensor", "filter"):
            raise ArgumentError(f"by is {self.by!r}; expected 'tensor' or 'filter'")

    def deviation(self, risk: EmpiricalRisk) -> Tensor:
        """Standard deviation of each parameter (N,)."""
        sizes = []
        for p, whole in zip(risk.probed.state.probed.values(), risk.probed.sizes(), strict=True):
            size = torch.tensor(whole, dtype=torch.float64, device=p.device)
            if self.by == "filter" and p.dim() > 1:  # a filter is a row, and one process has all of it
                size = p.detach().double().square().flatten(1).mean(1).sqrt().view(-1, *[1] * (p.dim() - 1))
            sizes.append(size.to(p.dtype).expand_as(p))
        return self.sigma * risk.probed.flatten(sizes)

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:
        """Yield ``num_probes`` displacements (N,) from the solution."""
        scale = self.deviation(risk)
        for displacement in IsotropicProbe(1.0).displacements(risk, num_probes, seed):
            yield scale * displacement


@dataclass(frozen=True)
class PointProbe:
    """The solution itself."""

    form: ClassVar[Form] = "point"

    def displacements(self, risk: EmpiricalRisk, num_probes: int, seed: int) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield ``num_probes`` displacements (N,) from the solution."""
        for _ in range(num_probes):
            yield torch.zeros(risk.probed.held, dtype=risk.dtype, device=risk.device)


@runtime_checkable
class SubspaceLaw(Probe, Protocol):
    """A law that is Gaussian in a subspace, independently along its basis."""

    @property
    def subspace(self) -> Subspace:
        """U, D directions."""
        ...

    @property
    def scale(self) -> Tensor:
        """Standard deviation along every direction, float64 (D,)."""
        ...

    def coordinates(self, num_probes: int, seed: int) -> Tensor:
        """The draws (S, D) of z, float64, whose displacements are ``U z``."""
        ...


@runtime_checkable
class FullSpaceLaw(Probe, Protocol):
    """A law that is Gaussian in all parameters, independently."""

    def deviation(self, risk: EmpiricalRisk) -> float | Tensor:
        """Standard deviation, of every parameter or one for each (N,)."""
        ...


def form_of(law: object) -> Form:
    """What can be done with a law: what it says of itself, or else what it has.

    Raises:
        ArgumentTypeError: for what is no law.
    """
    if not isinstance(law, Probe) or isinstance(law, type):
        raise ArgumentTypeError(
            f"the law is a {type(law).__name__}; expected a probing law such as SubspaceProbe(U, sigma)"
        )
    stated = getattr(law, "form", None)
    if stated in get_args(Form):
        return cast(Form, stated)
    if isinstance(law, FullSpaceLaw):
        return "full space"
    return "subspace" if isinstance(law, SubspaceLaw) else "draws"
