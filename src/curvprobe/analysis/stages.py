"""The stages of an analysis: each a name, what its result depends on, and how it is computed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from curvprobe.analysis.concentration import ConcentrationCurve, concentration_curve
from curvprobe.analysis.examination import Examination, examine_candidates, examine_model
from curvprobe.analysis.law_table import LawTable, compare_laws
from curvprobe.analysis.stationarity import DESCENT_STEPS, stationarity
from curvprobe.criteria.estimators import Estimate
from curvprobe.criteria.ranking import SHOWN, rank_candidates
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.criteria.stationarity import Stationarity
from curvprobe.criteria.verdicts import QuadraticValidity
from curvprobe.eigensolver.wanted import Which
from curvprobe.probing.full_space import full_space_moment, quadratic_model_at
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import IsotropicProbe, SubspaceProbe
from curvprobe.probing.monte_carlo import candidate_increments, probe_increments
from curvprobe.probing.named_laws import law_makers
from curvprobe.probing.plane import Plane, plane
from curvprobe.probing.validity import FIRST_DRAWS, subspace_validity
from curvprobe.risk.drawing import draw_examples
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.digest import digest
from curvprobe.runtime.store import Stage
from curvprobe.subspace.eigenspace import gathered, handed_out, top_eigenspace
from curvprobe.subspace.gradients import gradient_norms
from curvprobe.subspace.named import subspace_makers
from curvprobe.subspace.projection import project
from curvprobe.subspace.spaces import Eigenspace

FULL_SPACE_PRODUCTS = 24
"""Hessian products for the traces of the isotropic closed form."""

CONTROLLED_DRAWS = 32
"""Isotropic draws at which the quadratic model is the control: a Hessian product on the sample for each pair."""

VALIDITY_CANDIDATES, VALIDITY_DRAWS = 32, 16
"""Candidates whose increments the quadratic model is judged by, and the most draws of Monte Carlo at which it is."""

SURFACE_REACH = 4.0
"""Sigmas that the picture of the loss reaches either way."""

CONCENTRATION_CANDIDATES = 100
"""Candidates that the concentration curve is averaged over."""


@dataclass(frozen=True)
class Settings:
    """What an analysis was asked for; see :func:`curvprobe.analyze`."""

    dim: int
    sigma: float | Literal["auto"]
    which: Which
    tol: float
    max_matvecs: int | None
    num_probes: int
    seed: int
    compile: bool
    allow_overlap: bool = False
    p: float = 2.0
    max_examples: int | None = None

    @property
    def solver(self) -> dict[str, Any]:
        """The arguments of the eigenspace."""
        names = ("dim", "which", "tol", "max_matvecs", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Job:
    """The sample, the candidates and the settings that all stages depend on.

    Attributes:
        risk: on the sample, or on examples that were drawn of it and stand for all.
        new: on the candidates.
        settings: what was asked for.
        whole: on all of a sample of which some were drawn; else None.
        solved: on others, drawn independently, of which the eigenspace is found; else None.
    """

    risk: EmpiricalRisk
    new: EmpiricalRisk
    settings: Settings
    whole: EmpiricalRisk | None = None
    solved: EmpiricalRisk | None = None

    @classmethod
    def of(cls, risk: EmpiricalRisk, new: EmpiricalRisk, settings: Settings) -> Job:
        """On the whole sample, or on as many of its examples as the settings allow."""
        count, seed = settings.max_examples, settings.seed
        if count is None:
            return cls(risk, new, settings)
        return cls(draw_examples(risk, count, seed), new, settings, risk, draw_examples(risk, count, seed + 1))

    @cached_property
    def first(self) -> Joining:
        """The first candidate as the next example."""
        return Joining(self.risk, self.new[:1])

    @property
    def all_examples(self) -> EmpiricalRisk:
        """The risk on the whole sample."""
        return self.risk if self.whole is None else self.whole

    @cached_property
    def keys(self) -> list[str]:
        """Hashes of the sample's and the candidates' risks."""
        return [self.risk.key(), self.new.key()]


def stage_names(settings: Settings, full: bool, *, laws: bool, concentration: bool, surface: int) -> list[str]:
    """Names of the stages in their order: all, or without what the answer does not rest on. Those in all parameters
    take all examples, and of them the closed form is of the second order only."""
    wide = full and settings.max_examples is None
    asked = {
        "eigenspace": True,
        "sample": True,
        "candidates": True,
        "examination": True,
        "validity": True,
        "monte_carlo": True,
        "isotropic": wide,
        "isotropic_model": wide and settings.p == 2,
        "full_space": wide and settings.p == 2,
        "gradient_norms": full,
        "stationarity": True,
        "laws": laws,
        "concentration": concentration,
        "surface": surface > 0,
    }
    return [name for name, wanted in asked.items() if wanted]


# ---- one stage each, in the order of the work ------------------------------------------------------------------------


def eigenspace(job: Job, unfinished: Path | None) -> Stage[Eigenspace]:
    """The top eigenspace of the Hessian; ``unfinished`` keeps the solver's state."""
    risk, s = job.solved or job.risk, job.settings
    return Stage(
        "eigenspace",
        [risk.key(), s.solver],
        Eigenspace,
        lambda: top_eigenspace(risk, **s.solver, checkpoint=unfinished, compile=s.compile),
        whole=lambda found: gathered(found, risk.ranks),
        divided=lambda found: handed_out(found, risk),
    )


# What follows depends on the basis itself: computed anew, an eigenspace may come with other signs or another rotation.


def sample(job: Job, space: Eigenspace, basis: str) -> Stage[ProjectedSample]:
    """The sample, projected."""
    return Stage("sample", [job.keys[0], basis], ProjectedSample, lambda: project(job.risk, space))


def candidates(job: Job, space: Eigenspace, basis: str) -> Stage[ProjectedSample]:
    """The candidates, projected."""
    return Stage("candidates", [*job.keys, basis], ProjectedSample, lambda: project(job.new, space))


def examination(job: Job) -> Stage[dict[str, Any]]:
    """What was checked; kept, as a later run that finds all stages checks nothing."""

    def compute() -> dict[str, Any]:
        allowed = job.settings.allow_overlap
        findings = [*examine_model(job.risk), *examine_candidates(job.all_examples, job.new, allow_overlap=allowed)]
        return Examination.worst(job.risk.ranks.all_of(findings)).to_json()

    others = [] if job.whole is None else [digest(job.whole.digests())]  # of which a candidate may be one
    return Stage("examination", [*job.keys, *others], dict, compute)


def validity(
    job: Job, space: Eigenspace, basis: str, sample: ProjectedSample, fresh: ProjectedSample, grid: list[float]
) -> Stage[QuadraticValidity]:
    """Error of the quadratic model over a grid of sigmas, along the directions of Monte Carlo's own draws."""
    s = job.settings

    def compute() -> QuadraticValidity:
        judged = job.new[:VALIDITY_CANDIDATES]
        directions = SubspaceProbe(space, 1.0).coordinates(s.num_probes, s.seed)[:VALIDITY_DRAWS]
        few = fresh[: len(judged)]
        return subspace_validity(
            job.risk, grid, space, sample.mean(), directions, new=judged, fresh=few, wanted=s.sigma
        )

    key = [*job.keys, basis, grid, s.sigma, s.num_probes, FIRST_DRAWS, s.seed]
    return Stage("validity", key, QuadraticValidity, compute)


def monte_carlo(job: Job, space: Eigenspace, basis: str, sigma: float, judged: list[int]) -> Stage[Tensor]:
    """True increments (S, J) of the candidates at these positions, each alone, at draws in the subspace."""
    s = job.settings

    def compute() -> Tensor:
        joining = Joining(job.risk, job.new[judged])
        return candidate_increments(joining, SubspaceProbe(space, sigma), s.num_probes, s.seed)

    return Stage("monte_carlo", [*job.keys, basis, sigma, judged, s.num_probes, s.seed], Tensor, compute)


def judged_candidates(sample: ProjectedSample, fresh: ProjectedSample, sigma: float) -> list[int]:
    """Positions of the candidates whose rows are judged by draws of their own: the first ones, and those shown."""
    shown = rank_candidates(sample, fresh, sigma).order[:SHOWN].tolist()
    return list(dict.fromkeys([*range(min(len(fresh), VALIDITY_CANDIDATES)), *shown]))


def isotropic(job: Job, sigma: float) -> Stage[Tensor]:
    """The same at isotropic draws."""
    s = job.settings
    return Stage(
        "isotropic",
        [*job.keys, sigma, s.num_probes, s.seed],
        Tensor,
        lambda: probe_increments(job.first, IsotropicProbe(sigma), s.num_probes, s.seed),
    )


def isotropic_model(job: Job, sigma: float) -> Stage[Tensor]:
    """The quadratic model's increments at the first of the isotropic draws."""
    s, count = job.settings, min(job.settings.num_probes, CONTROLLED_DRAWS)

    def compute() -> Tensor:
        draws = IsotropicProbe(sigma).displacements(job.risk, s.num_probes, s.seed)
        return quadratic_model_at(job.first, itertools.islice(draws, count), count)

    return Stage("isotropic_model", [*job.keys, sigma, s.num_probes, count, s.seed], Tensor, compute)


def full_space(job: Job, sigma: float) -> Stage[Estimate]:
    """The isotropic criterion in closed form, by stochastic traces."""
    risk, new, seed = job.first.risk, job.first.new, job.settings.seed
    return Stage(
        "full_space",
        [*job.keys, sigma, seed],
        Estimate,
        lambda: full_space_moment(risk, new, sigma=sigma, num_probes=FULL_SPACE_PRODUCTS, seed=seed),
    )


def stationary(
    job: Job, space: Eigenspace, basis: str, sample: ProjectedSample, fresh: ProjectedSample
) -> Stage[Stationarity]:
    """How far the solution is from a minimiser."""
    return Stage(
        "stationarity",
        [*job.keys, basis, DESCENT_STEPS, *([] if job.solved is None else [job.solved.key()])],
        Stationarity,
        lambda: stationarity(job.risk, space, sample, fresh, steps=job.solved),
    )


def norms(job: Job) -> Stage[Tensor]:
    """Norm of every candidate's gradient."""
    return Stage("gradient_norms", [job.keys[1]], Tensor, lambda: gradient_norms(job.new))


def surface(job: Job, space: Eigenspace, basis: str, sigma: float, points: int) -> Stage[Plane]:
    """The loss itself over the plane of the first two eigenvectors, as far as :data:`SURFACE_REACH` sigmas."""

    def compute() -> Plane:
        names = ("eigenvector 1", "eigenvector 2")
        return plane(job.risk, space, reach=SURFACE_REACH * sigma, points=points, names=names)

    return Stage("surface", [job.keys[0], basis, sigma, points, SURFACE_REACH], Plane, compute)


def laws(job: Job, space: Eigenspace, basis: str, sigma: float) -> Stage[LawTable]:
    """The first candidate under other laws."""
    s = job.settings

    def compute() -> LawTable:
        others = law_makers(job.risk, space, sigma, tol=s.tol, seed=s.seed)
        return compare_laws(job.risk, job.first.new, others, num_probes=s.num_probes, seed=s.seed)

    return Stage("laws", [*job.keys, basis, sigma, s.num_probes, s.tol, s.seed], LawTable, compute)


def concentration(job: Job, space: Eigenspace, basis: str, sigma: float) -> Stage[ConcentrationCurve]:
    """How much of the full-space signal this subspace and others capture."""
    s = job.settings

    def compute() -> ConcentrationCurve:
        few = job.new[:CONCENTRATION_CANDIDATES]
        makers = subspace_makers(job.risk, few, s.dim, tol=s.tol, seed=s.seed, hessian=space)
        return concentration_curve(job.risk, few, sigma=sigma, subspaces=makers, seed=s.seed)

    return Stage("concentration", [*job.keys, basis, sigma, s.tol, s.seed], ConcentrationCurve, compute)
