"""One run behind two figures: the criteria at every k while the sample grows and the weights follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from curvprobe.criteria.decay import parts_by_dim_and_sigma
from curvprobe.criteria.expectation import pool_dispersion
from curvprobe.criteria.increment import fresh_increments
from curvprobe.criteria.sample import ProjectedSample
from curvprobe.experiments import paper_procedure as procedure
from curvprobe.experiments.cost import Cost, eigenspace_cost
from curvprobe.experiments.machine import code_of
from curvprobe.experiments.options import Options
from curvprobe.experiments.released import ROWS, released
from curvprobe.experiments.solutions import PAPER, SMALL, Language, Solution, converged, stream
from curvprobe.experiments.subspaces import Functionals, functionals
from curvprobe.numerics.linalg import norm
from curvprobe.probing.full_space import full_space_parts
from curvprobe.probing.joining import Joining
from curvprobe.probing.laws import IsotropicProbe
from curvprobe.probing.monte_carlo import candidate_increments
from curvprobe.runtime import progress
from curvprobe.runtime.digest import digest
from curvprobe.runtime.store import Stage, Store
from curvprobe.subspace.eigenspace import top_eigenspace
from curvprobe.subspace.projection import mean_projection, project
from curvprobe.subspace.spaces import random_subspace

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Of a growing sample.

    Attributes:
        language: the model that streams through text.
        ks: sample sizes with sequential weights, multiples of the batch.
        converged_ks: sample sizes of digits with converged weights.
        seeds: runs, each with an order of the data and initial weights of its own.
        candidates: next examples that every criterion is averaged over.
        sigmas, dims: standard deviations, and dimensions of the eigenspace.
        num_probes: isotropic draws.
        trace_candidates, trace_products: of the full-space shape in closed form.
        compared_at: sample size, one of the others, at which several kinds of subspaces are compared.
        hessian_examples: the eigenspace is that of the Hessian on so many of the k examples, at most; None takes all.
            Every other number is on all k in either case.
    """

    language: Language
    ks: tuple[int, ...]
    converged_ks: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    seeds: int = 4
    candidates: int = 32
    sigmas: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    dims: tuple[int, ...] = (1, 4, 16)
    num_probes: int = 32
    trace_candidates: int = 8
    trace_products: int = 8
    compared_at: int = 64
    hessian_examples: int | None = None

    def sizes(self, options: Options) -> tuple[int, ...]:
        """The sample sizes with these weights."""
        return self.ks if options.weights == "sequential" else self.converged_ks


PRESETS = {
    "cpu": Settings(SMALL, ks=(8, 16, 32, 64, 128, 256)),
    "paper": Settings(
        PAPER,
        ks=(16, 32, 48, 64, 96, 128, 192, 272, 368, 512, 704, 976, 1360, 1888, 2608, 3616, 4992, 6912, 8480, 10000),
        seeds=8,
        hessian_examples=64,
    ),
}


@dataclass(frozen=True, eq=False)
class Point:
    """What was measured at one solution. S sigmas, M dimensions, m candidates; squared loss units.

    Attributes:
        k: examples in the sample. ``num_params``: N.
        loss, gradient_norm: of the risk.
        eigenvalues: float64 (D,). ``residual``: the largest, relative to the first. ``num_matvecs``: products.
        increments: true increments at isotropic draws, float64 (S, draws, m).
        level: increments at the solution itself, (m,).
        top, random: level, slope and curvature parts in the top eigenspace and in a random subspace, (3, m, M, S).
        full_slope, full_curvature: parts of the full-space shape at sigma = 1 for the first candidates, (c,); they go
            with sigma^2 and sigma^4.
        dispersion: level, slope and curvature parts of the landscape dispersion V over the candidates, (3, S).
    """

    k: int
    num_params: int
    loss: float
    gradient_norm: float
    eigenvalues: Tensor
    residual: float
    num_matvecs: int
    increments: Tensor
    level: Tensor
    top: Tensor
    random: Tensor
    full_slope: Tensor
    full_curvature: Tensor
    dispersion: Tensor


@dataclass(frozen=True, eq=False)
class Literal:
    """What the paper's released procedure computes at one solution. S sigmas, M dimensions; squared loss units.

    Attributes:
        delta1: (). ``isotropic``: (S,). ``subspace``: (M, S).
        same_rows: as ``subspace``, with nothing changed but that both Hessians are on all rows.
    """

    delta1: Tensor
    isotropic: Tensor
    subspace: Tensor
    same_rows: Tensor


@dataclass(frozen=True, eq=False)
class Growth:
    """The points of all seeds: every value of :class:`Point` as a float64 tensor with (seeds, K) in front; those of
    :class:`Literal`, where they were asked for, under ``literal_`` and their name."""

    settings: Settings
    ks: tuple[int, ...]
    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """One field of all points, (seeds, K, ...)."""
        return self.values[name]


def measure(settings: Settings, options: Options, store: Store) -> Growth:
    """The points of every seed and k; those that the store holds are not computed again."""
    ks = settings.sizes(options)
    if options.weights == "converged":
        settings = replace(settings, hessian_examples=None)  # digits are small
    runs = at_sizes(
        ks, "", Point, lambda solution, seed: at_solution(solution, settings, seed), settings, options, store
    )
    values = {entry.name: _stacked(runs, entry.name) for entry in fields(Point)}
    if options.literal:
        literal = at_sizes(
            ks,
            "-literal",
            Literal,
            lambda solution, seed: literal_criteria(solution, settings, seed),
            settings,
            options,
            store,
        )
        values |= {f"literal_{entry.name}": _stacked(literal, entry.name) for entry in fields(Literal)}
    return Growth(settings, ks, values)


def _stacked(runs: list[list[T]], name: str) -> Tensor:
    """One field of all points, (seeds, K, ...)."""
    return torch.stack(
        [torch.stack([torch.as_tensor(getattr(p, name), dtype=torch.float64) for p in points]) for points in runs]
    )


def compare_subspaces(settings: Settings, options: Options, store: Store) -> list[Functionals]:
    """Several kinds of subspaces at one size, for every seed."""
    runs = at_sizes(
        (settings.compared_at,),
        "-subspaces",
        Functionals,
        lambda solution, seed: functionals(solution, max(settings.dims), seed),
        settings,
        options,
        store,
    )
    return [points[0] for points in runs]


def at_sizes(
    ks: tuple[int, ...],
    name: str,
    kind: type[T],
    look: Callable[[Solution, int], T],
    settings: Settings,
    options: Options,
    store: Store,
) -> list[list[T]]:
    """``look(solution, seed)`` at every size of every seed."""
    sequences = settings.language.sequences(options.text, store) if options.weights == "sequential" else None
    looked_at = replace(settings, ks=(), converged_ks=(), seeds=0, compared_at=0)  # a point depends on no other
    source = "digits" if sequences is None else digest(sequences)
    runs: list[list[T]] = []
    with progress.bar("growing samples (seeds x sizes)", settings.seeds * len(ks)) as advance:
        for seed in range(options.seed, options.seed + settings.seeds):
            solutions: Iterator[Solution] = iter(())
            reached, points = len(ks), []
            for i, k in enumerate(ks):

                def compute(i: int = i, seed: int = seed) -> T:
                    nonlocal solutions, reached
                    if reached > i:  # nothing was trained yet: to train up to where a run stopped takes seconds
                        solutions, reached = _solutions(settings, sequences, ks[i:], seed, options, store), i
                    while reached < i:  # found on disk since then
                        next(solutions)
                        reached += 1
                    reached += 1
                    return look(next(solutions), seed)

                key = [code_of(kind), str(looked_at), source, k, seed, options.device]
                key += [code_of(released)] if options.literal else []
                points.append(store.result(Stage(f"{options.weights}{name}-seed{seed}-k{k}", key, kind, compute)))
                advance(1)
            runs.append(points)
    return runs


def comparison_cost(settings: Settings) -> Cost:
    """Of several kinds of subspaces at one size: the bottom eigenspace takes most."""
    return Cost(0, 0, settings.compared_at * (30 + 36 * max(settings.dims)), 0) * settings.seeds


def _solutions(
    settings: Settings, sequences: Tensor | None, ks: tuple[int, ...], seed: int, options: Options, store: Store
) -> Iterator[Solution]:
    if sequences is None:
        return converged(ks, settings.candidates, seed=seed, cache=store.directory)
    return stream(settings.language, sequences, ks, settings.candidates, seed=seed, device=options.device)


def at_solution(solution: Solution, settings: Settings, seed: int) -> Point:
    """Every criterion at one solution."""
    risk, new, dim = solution.risk, solution.new, max(settings.dims)
    joining = Joining(risk, new)
    few_rows = risk if settings.hessian_examples is None else risk[: settings.hessian_examples]
    space = top_eigenspace(few_rows, dim=dim, seed=seed)
    null = random_subspace(risk, dim, seed=seed)
    fresh = project(new, space)
    few = new[: settings.trace_candidates]
    full = full_space_parts(risk, few, sigma=1.0, num_probes=settings.trace_products, seed=seed)
    increments = [
        candidate_increments(joining, IsotropicProbe(sigma), settings.num_probes, seed) for sigma in settings.sigmas
    ]
    return Point(
        k=len(risk),
        num_params=risk.num_params,
        loss=risk.value(),
        gradient_norm=norm(risk.gradient()),
        eigenvalues=space.eigenvalues,
        residual=float(space.residuals.max()),
        num_matvecs=space.num_matvecs,
        increments=torch.stack(increments),
        level=joining.factors * (new.losses() - risk.value()),
        top=_parts(mean_projection(risk, space), fresh, settings),
        random=_parts(mean_projection(risk, null), project(new, null), settings),
        full_slope=full.slope,
        full_curvature=full.curvature,
        dispersion=torch.stack([pool_dispersion(fresh, sigma).mean(0) for sigma in settings.sigmas], dim=1),
    )


def _parts(mean: ProjectedSample, fresh: ProjectedSample, settings: Settings) -> Tensor:
    """Level, slope and curvature parts for every candidate, (3, m, M, S)."""
    increments = next(fresh_increments(mean, fresh, [1]))  # the mean is one example that weighs as all of them
    return parts_by_dim_and_sigma(increments, settings.dims, torch.tensor(settings.sigmas, dtype=torch.float64))


def literal_criteria(solution: Solution, settings: Settings, seed: int) -> Literal:
    """The criteria as the paper's released procedure computes them; see :class:`Released`."""
    found = released(solution, max(settings.dims), seed, at_random=True)
    generator = torch.Generator().manual_seed(seed)
    isotropic = []
    for sigma in settings.sigmas:
        noise = (
            sigma * torch.randn(solution.risk.num_params, generator=generator).to(found.basis)
            for _ in range(settings.num_probes)
        )
        increments = procedure.direct_increments(found.mean, found.before, found.after, noise)
        isotropic.append(float(increments.square().mean()))
    return Literal(
        torch.tensor(float(found.model.level.abs()), dtype=torch.float64),
        torch.tensor(isotropic, dtype=torch.float64),
        _closed_forms(found.model, settings),
        _closed_forms(found.on_the_same_rows(), settings),
    )


def _closed_forms(model: procedure.Coefficients, settings: Settings) -> Tensor:
    rows = [[procedure.closed_form(model.truncate(dim), sigma) for sigma in settings.sigmas] for dim in settings.dims]
    return torch.tensor(rows, dtype=torch.float64)


def cost(settings: Settings, options: Options) -> Cost:
    """Of all seeds and sizes."""
    total, dim, m = Cost(0, 0, 0, 0), max(settings.dims), settings.candidates
    for k in settings.sizes(options):
        hessian_rows = min(k, settings.hessian_examples or k)
        products = 2 * dim * m + dim * k + settings.trace_products * (k + settings.trace_candidates)
        products += 0 if hessian_rows == k else dim * k
        forwards = len(settings.sigmas) * settings.num_probes * (k + m)
        if options.literal:
            products += 20 * dim * ROWS + 2 * dim * ROWS + 2 * dim * k
            forwards += len(settings.sigmas) * settings.num_probes * 2 * k
        total = total + eigenspace_cost(hessian_rows, dim) + Cost(0, forwards, products, 0)
    trained = settings.ks[-1] if options.weights == "sequential" else 2000 * sum(settings.converged_ks)
    return (total + Cost(trained, 0, 0, 0)) * settings.seeds
