"""Forecast what more data takes off the held-out loss: refits as stages, the rules, and what they say."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curvprobe.errors import ArgumentError, ArgumentTypeError
from curvprobe.forecasting.of_trajectory import of_trajectory
from curvprobe.forecasting.refits import Refits, expect_one_content, joined
from curvprobe.forecasting.result import FORECAST_VERSION, Forecast, told
from curvprobe.forecasting.training import Trained, Training
from curvprobe.runtime import progress
from curvprobe.runtime.store import Stage, Store
from curvprobe.version import __version__

LOG = logging.getLogger("curvprobe")

FEWEST = 16
"""Examples below which a sample is not cut into quarters."""


def forecast(
    train: Callable[[Any], Trained] | str | Path,
    k: int | None = None,
    held_out: Any = None,
    *,
    splits: int = 4,
    processes: int = 1,
    seed: int = 0,
    allow_overlap: bool = False,
    out: str | Path | None = None,
    say: Callable[[str], object] = LOG.info,
) -> Forecast:
    """Forecast how much twice, and four times, the examples would take off the held-out loss.

    Another question than the criteria's, which tell how stable the landscape is around weights that stay. The model is
    trained anew on all k examples, on the halves of several random splits of them, and on quarters; docs/forecast.md
    has the rules, what they assume, and how often they were right.

    Args:
        train: ``train(rows)`` trains a new model on these rows of the sample, a list of positions below ``k``, and
            returns the :class:`curvprobe.EmpiricalRisk` on them at the weights it ends in; or the pair of that and the
            held-out examples. A function whose first parameter is called ``k`` is asked for the first k, k / 2 and
            k / 4 examples instead. The generators of torch, NumPy and Python are seeded before each call. Or the
            folder of a trajectory with candidates, and with k and k / 2 among its sizes: nothing is trained then, and
            nothing else is looked at.
        k: examples in the sample.
        held_out: examples that no training sees, in any form that the risk takes; at least 40.
        splits: of the sample into halves; each costs as much as a training on k examples.
        processes: that train beside one another; ``train`` must then be a function of a module, and a script that calls
            this must do so under ``if __name__ == "__main__":``.
        seed: of the splits and of what each training draws.
        allow_overlap: take held-out examples that equal some of the sample's too, as tables of few values have them.
        out: folder for ``result.json`` and the finished trainings, which are found again when it is repeated, as long
            as the file that holds ``train``, and the numbers, texts and tensors outside it that it names, are the same;
            what it imports or reads from files is not looked at.
        say: is given a sentence on what it costs, before the first training and after it.

    Raises:
        ValueError, TypeError: for a training that returns something else, or held-out examples that it has seen.

    Example:
        >>> import torch, curvprobe as cp
        >>> draw = torch.Generator().manual_seed(0)
        >>> x = torch.randn(800, 20, dtype=torch.float64, generator=draw)
        >>> y = x.sum(1, keepdim=True) + torch.randn(800, 1, dtype=torch.float64, generator=draw)
        >>> def train(rows):   # least squares
        ...     model = torch.nn.Linear(20, 1, bias=False).double()
        ...     model.weight.data = torch.linalg.lstsq(x[rows], y[rows]).solution.T
        ...     return cp.EmpiricalRisk(model, cp.losses.mse, (x[rows], y[rows]))
        >>> found = cp.forecast(train, 100, (x[100:], y[100:]))
        >>> low, high = found.interval
        >>> found.reasons, low < 20 / 79 - 20 / 179 < high    # what theory says: 0.14
        ((), True)
    """
    if not callable(train):
        return told(of_trajectory(Path(train)))
    if k is None or k < FEWEST or splits < 1 or processes < 1:
        raise ArgumentError(
            f"k is {k}, splits {splits}, processes {processes}; expected k of at least {FEWEST}, the others of 1"
        )
    training = Training(train, held_out, allow_overlap)
    if processes > 1:
        _expect_portable(training)
    store, jobs = Store.at(out), _jobs(training, k, splits, seed)
    say(_cost(jobs, k, processes))
    with store.held():
        found = told(_trained(store, training, jobs, processes, seed, say))
        config = {"k": k, "splits": splits, "seed": seed, "allow_overlap": allow_overlap}
        record = {"config": config, "forecast": found.to_json()}
        store.write_result({"schema_version": FORECAST_VERSION, "version": __version__, **record})
    return found


def _trained(
    store: Store, training: Training, jobs: Sequence[_Job], processes: int, seed: int, say: Callable[[str], object]
) -> list[Refits]:
    """Trainings of each size, the largest first, found or made."""
    k = len(jobs[0].pieces[0])
    with progress.bar("trainings, in units of one on k", round(_work(jobs, k))) as advance:
        full = store.result(_stage(training, jobs[0], seed, None))
        advance(1)
        seconds = float(full.seconds.sum())
        left = seconds * _work(jobs[1:], k) / processes
        say(f"The training on {k:,} examples took {seconds:.3g} s: about {left:.3g} s for what is not finished yet.")
        parts = []
        with _side_by_side(processes) as (each, executor):
            stages = [_stage(training, job, seed, executor) for job in jobs[1:]]
            for job, part in zip(jobs[1:], each(store.result, stages), strict=True):
                parts.append(part)
                advance(round(_work([job], k)))
    sizes = [full, *(joined([part for part in parts if part.size == size]) for size in (k // 2, k // 4))]
    expect_one_content(sizes)
    return sizes


def _cost(jobs: Sequence[_Job], k: int, processes: int) -> str:
    """What is trained, in a sentence."""
    models = sum(len(job.pieces) for job in jobs)
    beside = f", {processes} at a time" if processes > 1 else ""
    return f"{models} models are trained{beside}: as much work as {_work(jobs, k):.3g} trainings on {k:,} examples."


def _expect_portable(training: Training) -> None:
    """Refuse a function that other processes cannot be given, before anything is trained."""
    try:
        pickle.dumps(training)
    except Exception as error:  # whatever the user's objects raise
        raise ArgumentTypeError(
            f"train, or held_out, cannot be given to other processes ({error!r:.200}); expected a function of a "
            "module, or processes=1"
        ) from error


@dataclass(frozen=True)
class _Job:
    """Trainings that belong together: the rows of each."""

    name: str
    pieces: tuple[tuple[int, ...], ...]


def _jobs(training: Training, k: int, splits: int, seed: int) -> list[_Job]:
    """All on k, then the halves, then the quarters."""
    half, quarter, first = k // 2, k // 4, tuple(range(k))
    if training.by_size:
        return [_Job("all", (first,)), _Job("half", (first[:half],)), _Job("quarter", (first[:quarter],))]
    orders = [_shuffled(k, seed + split) for split in range(splits)]
    halves = [_Job(f"halves-{at + 1}", (order[:half], order[half : 2 * half])) for at, order in enumerate(orders)]
    cuts = tuple(orders[0][quarter * place : quarter * (place + 1)] for place in range(4))
    return [_Job("all", (first,)), *halves, _Job("quarters", cuts)]


def _shuffled(k: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(k, generator=torch.Generator().manual_seed(seed), device="cpu").tolist())


def _work(jobs: Sequence[_Job], k: int) -> float:
    """In units of one training on k examples."""
    return sum(len(rows) for job in jobs for rows in job.pieces) / k


def _stage(training: Training, job: _Job, seed: int, executor: Executor | None) -> Stage[Refits]:
    first = seed + sum(map(ord, job.name)) * 1000  # each job has draws of its own

    def compute() -> Refits:
        if executor is None:
            return training.refits(job.pieces, first)
        found: Refits = pickle.loads(executor.submit(_pickled, training, job, first).result())
        return found

    return Stage(f"forecast-{job.name}", [*training.content(), job.pieces, first], Refits, compute)


def _pickled(training: Training, job: _Job, seed: int) -> bytes:
    """In another process, with one thread."""
    torch.set_num_threads(1)
    return pickle.dumps(training.refits(job.pieces, seed))


Each = Callable[[Callable[[Stage[Refits]], Refits], Sequence[Stage[Refits]]], Iterable[Refits]]


@contextmanager
def _side_by_side(processes: int) -> Iterator[tuple[Each, Executor | None]]:
    """How stages are gone through, and the processes that train, where there are to be several."""
    if processes == 1:
        yield map, None
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawned) as executor, ThreadPoolExecutor(processes) as waiting:
        try:
            yield waiting.map, executor
        except BaseException:  # what has not begun is not to be waited for
            waiting.shutdown(wait=False, cancel_futures=True)
            executor.shutdown(wait=False, cancel_futures=True)
            raise
