"""The landscape looked at again and again while a model trains, which it leaves as it was to the last bit."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from curvprobe.criteria.draws import check_sigma
from curvprobe.criteria.expectation import expected_criterion
from curvprobe.curvature.matrix import CurvatureMatrix, hessian
from curvprobe.eigensolver.doubt import ConvergenceWarning
from curvprobe.eigensolver.lanczos import Eigenpairs, lanczos
from curvprobe.eigensolver.wanted import Which
from curvprobe.errors import ArgumentError, NotFiniteError, checking
from curvprobe.losses import Loss
from curvprobe.numerics.linalg import norm
from curvprobe.numerics.traces import FEWEST_PROBES, trace_moments
from curvprobe.risk.calling import Forward, unwrap
from curvprobe.risk.contract import check_loss
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.examples import Examples
from curvprobe.risk.following import at_weights_of, beside
from curvprobe.risk.parameters import Selection
from curvprobe.risk.undisturbed import undisturbed
from curvprobe.runtime import progress
from curvprobe.runtime.threads import SWEPT
from curvprobe.subspace.eigenspace import plan_memory
from curvprobe.subspace.projection import project
from curvprobe.subspace.spaces import Subspace

PREFIX = "curvprobe/"
"""Of the name of every number."""


class Monitor:
    """Curvature and stability of a model in training, as flat numbers for a logger.

    A call looks at the weights as they are then: it takes the model in eval mode on a fixed small sample, and leaves
    weights, gradients, buffers, modes and random generators as they were. It starts from the last eigenspace,
    searches for what has overtaken it, and stops at a budget with what it then knows.

    Args:
        loss, data, params, collate_fn, forward, microbatch_size, memory_budget: as of :class:`EmpiricalRisk`. The
            sample stays the same for all calls; some dozens of examples are enough to see the curvature move.
        candidates: examples outside the training data; with them come the stability criteria.
        dim: number D of eigenvalues.
        every: steps from one call to the next, for :meth:`due` and the callbacks.
        sigma: standard deviation of the criteria's probe, one for all calls.
        negative: take the lowest eigenvalue too, which is another search.
        trace_products: products for an estimate of the trace; 0 leaves it out.
        tol: bound on the eigenpairs' residuals relative to the first eigenvalue.
        max_matvecs, max_seconds: budget of a call; None is no bound. Seconds are turned into products by the time that
            the first one takes, so a call may take somewhat longer.
        seed: of the solver and the traces.

    Attributes:
        history: what every call has returned, in order, with its step.

    Raises:
        ValueError, TypeError: for arguments that make no sense; a model that cannot be probed is refused by the first
            call, with the remedy.

    Example:
        >>> import torch, curvprobe as cp
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-1, 1, 16)[:, None]
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = cp.Monitor(cp.losses.mse, (x, x.sin()), every=10)
        >>> for step in range(21):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.mse_loss(model(x), x.sin()).backward()
        ...     optimizer.step()
        ...     if monitor.due(step):
        ...         metrics = monitor(model, step=step)
        >>> len(monitor.history), sorted(metrics)[:3]
        (3, ['curvprobe/budget_reached', 'curvprobe/eigenvalue_1', 'curvprobe/gradient_norm'])
    """

    def __init__(
        self,
        loss: Loss,
        data: Any,
        candidates: Any = None,
        *,
        dim: int = 1,
        every: int = 1000,
        sigma: float = 1e-3,
        negative: bool = False,
        trace_products: int = 0,
        tol: float = 1e-2,
        max_matvecs: int | None = None,
        max_seconds: float | None = None,
        seed: int = 0,
        params: Selection = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        forward: Forward | None = None,
        microbatch_size: int | None = None,
        memory_budget: float | None = None,
    ) -> None:
        for name, count, least in (("every", every, 1), ("dim", dim, 1), ("max_matvecs", max_matvecs, dim + 2)):
            if count is not None and (not isinstance(count, Integral) or count < least):
                raise ArgumentError(f"{name} is {count!r}; expected a whole number of at least {least}")
        if trace_products and trace_products < FEWEST_PROBES:
            raise ArgumentError(f"trace_products is {trace_products}; expected 0, or at least {FEWEST_PROBES}")
        if max_seconds is not None and not max_seconds > 0:
            raise ArgumentError(f"max_seconds is {max_seconds!r}; expected a positive number or None")
        check_sigma(sigma)
        _check_known(loss, data, candidates, collate_fn)
        self.every, self.history = every, list[dict[str, float]]()
        self._dim, self._sigma, self._tol, self._seed = dim, sigma, tol, seed
        self._negative, self._trace_products = negative, trace_products
        self._max_matvecs, self._max_seconds = max_matvecs, max_seconds
        self._loss, self._data, self._candidates = loss, data, candidates
        self._options: dict[str, Any] = {"params": params, "collate_fn": collate_fn, "forward": forward}
        self._options |= {"microbatch_size": microbatch_size, "memory_budget": memory_budget}
        self._risks: tuple[EmpiricalRisk, EmpiricalRisk | None] | None = None
        self._last: Eigenpairs | None = None
        self._lowest: Eigenpairs | None = None

    def due(self, step: int) -> bool:
        """Whether a call is due after so many steps."""
        return step % self.every == 0

    def __call__(self, model: nn.Module, *, step: int | None = None) -> dict[str, float]:
        """Look at the model as it is now.

        Args:
            model: in any mode, also within the wrappers of torch.compile and DistributedDataParallel.
            step: for the ``history``.

        Returns:
            Numbers by name, each beginning with ``curvprobe/``: loss and gradient norm on the sample, eigenvalues with
            the largest residual, products, seconds, whether the budget ended the search, and what was asked for. Where
            a loss or a derivative is not finite, ``not_finite`` stands in their place.
        """
        start = time.perf_counter()
        with evaluated(model), progress.hidden():
            try:
                found = self._measure(*self._risks_at(model), start)
            except NotFiniteError:  # a training that has diverged ends by itself, not by being watched
                found = {"not_finite": 1.0}
                self._risks = self._last = self._lowest = None
        found["seconds"] = time.perf_counter() - start
        metrics = {f"{PREFIX}{name}": float(value) for name, value in found.items()}
        self.history.append(metrics if step is None else {"step": float(step), **metrics})
        return metrics

    def _risks_at(self, model: nn.Module) -> tuple[EmpiricalRisk, EmpiricalRisk | None]:
        """The risks at the model's weights; all that is checked once for a model is checked at its first call."""
        if self._risks is None or self._risks[0].probed.module is not unwrap(model):
            risk = EmpiricalRisk(model, self._loss, self._data, **self._options)
            self._risks = risk, None if self._candidates is None else risk.on(self._candidates)
            self._last = self._lowest = None
        else:
            risk, candidates = self._risks
            now = at_weights_of(risk, model)
            self._risks = now, None if candidates is None else beside(candidates, now)
        return self._risks

    def _measure(self, risk: EmpiricalRisk, candidates: EmpiricalRisk | None, start: float) -> dict[str, float]:
        gradient = norm(risk.gradient())
        found = {"loss": risk.value(), "gradient_norm": gradient}
        matrix = hessian(risk)
        budget, used = self._products(matrix, risk, start)
        space, before = self._solved(risk, budget, "algebraic", self._last), self._last
        found |= {f"eigenvalue_{i + 1}": value for i, value in enumerate(space.eigenvalues.tolist())}
        found["residual_max"] = float(space.residuals.max())
        if before is not None:
            found["overlap_with_last"] = overlap(before, space)
        self._last, used = space, used + space.num_matvecs
        ended = budget is not None and not bool(space.converged.all())
        if self._negative:
            left = None if budget is None else budget - space.num_matvecs
            if left is None or left >= 3:
                self._lowest = self._solved(risk, left, "smallest", self._lowest)
                found["eigenvalue_lowest"] = float(self._lowest.eigenvalues[0])
                used += self._lowest.num_matvecs
                ended = ended or (left is not None and not bool(self._lowest.converged.all()))
            else:
                ended = True
        if self._trace_products:
            left = None if self._max_matvecs is None and budget is None else (budget or 0) - used
            if left is None or left >= self._trace_products:
                found |= self._trace(matrix, risk)
                used += self._trace_products
            else:
                ended = True
        if candidates is not None:
            found |= self._criteria(risk, candidates, space)
        return found | {"num_matvecs": used, "budget_reached": ended}

    def _products(self, matrix: CurvatureMatrix, risk: EmpiricalRisk, start: float) -> tuple[int | None, int]:
        """Products that the budget has room for, and those that it took to find out."""
        budget = self._max_matvecs
        if self._max_seconds is None:
            return budget, 0
        began = time.perf_counter()
        first = torch.ones(risk.num_params, dtype=risk.dtype, device=risk.device)
        matrix @ (first / norm(first))
        each = time.perf_counter() - began
        room = int((self._max_seconds - (time.perf_counter() - start)) / max(each, 1e-9))
        room = max(self._dim + 2, room)  # fewer tell nothing
        return room if budget is None else max(self._dim + 2, min(room, budget - 1)), 1

    def _solved(self, risk: EmpiricalRisk, budget: int | None, which: Which, last: Eigenpairs | None) -> Eigenpairs:
        """The eigenpairs, from those of the last call on.

        The search for missed ones is part of every call: an eigenvector of the last may still be one, to any accuracy,
        when another has overtaken it, and nothing but the search would see that.
        """
        dim = self._dim if which == "algebraic" else 1
        slim, basis_size, device = plan_memory(risk, dim)
        matrix = CurvatureMatrix(slim, "hessian", False)
        with warnings.catch_warnings(), risk.few_threads(SWEPT * 4 * risk.num_params * (basis_size or 0)):
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by the residual and the flag
            return lanczos(
                lambda block: matrix @ block,
                risk.num_params,
                dim=dim,
                which=which,
                tol=self._tol,
                max_matvecs=budget,
                seed=self._seed,
                dtype=risk.dtype,
                device=device,
                start=None if last is None else last.vectors,
                basis_size=basis_size,
            )

    def _trace(self, matrix: CurvatureMatrix, risk: EmpiricalRisk) -> dict[str, float]:
        moments = trace_moments(
            lambda block: matrix @ block,
            risk.num_params,
            num_products=self._trace_products,
            seed=self._seed,
            dtype=risk.dtype,
            device=risk.device,
        )
        return {"trace": moments.trace, "trace_stderr": moments.trace_stderr}

    def _criteria(self, risk: EmpiricalRisk, candidates: EmpiricalRisk, space: Eigenpairs) -> dict[str, float]:
        subspace = Subspace(space.vectors.to(risk.device))
        sample, fresh = project(risk, subspace), project(candidates, subspace)
        found = expected_criterion(sample, fresh, self._sigma)
        low, high = found.rms_interval
        upper = {"rms_high": high} if math.isfinite(high) else {}  # few candidates set no upper end
        told = {"candidates_loss": candidates.value(), "rms": found.rms, "rms_low": low}
        return told | upper | {"shape_rms": found.shape_rms}


def _check_known(loss: Loss, data: Any, candidates: Any, collate_fn: Callable[[list[Any]], Any] | None) -> None:
    """Refuse before the training what the first call would refuse in its midst; no generator is moved."""
    check_loss(loss)
    with checking("data"), undisturbed(nn.Identity(), (), torch.device("cpu")):
        for given in (data, candidates):
            tensors = isinstance(given, Tensor | tuple | Mapping)  # candidates may be, whatever the sample is
            if given is data or given is not None:
                examples = Examples(given, None if tensors and given is not data else collate_fn)
                examples.batch(0, min(2, len(examples)))


def overlap(one: Eigenpairs, other: Eigenpairs) -> float:
    """``|U^T U'|_F^2`` over D: 1 for the same space."""
    product: Tensor = one.vectors.double().T @ other.vectors.double()
    return float(product.square().sum()) / min(product.shape)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """A block in which the model is in eval mode; each of its modules is in its own again after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False  # not by eval(), which a model may have made its own
        yield
    finally:
        for module, training in modes:
            module.training = training
