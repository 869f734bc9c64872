"""Processes that share a run hold a part of an eigenspace each, and go on from what any other number has left."""

import warnings
from pathlib import Path

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.stages import Job, Settings, eigenspace
from curvprobe.eigensolver.krylov import KrylovBasis
from curvprobe.risk.budget import Budget
from curvprobe.runtime.store import Store
from tests import cases, several

SETTINGS = Settings(3, 0.01, "algebraic", 1e-9, None, 4, 0, False)


def found_in(group, folder):
    """The rows held of an eigenspace that is found there or computed, whether it was found, and all of it."""
    case = cases.make("mlp")
    risk = case.risk(group=group)
    store = Store.at(folder, risk.ranks)
    space = store.result(eigenspace(Job(risk, risk.on(case.candidates), SETTINGS), None))
    return len(space.basis), store.finished["eigenspace"].found, space.columns(), space.key(), space.eigenvalues


@pytest.mark.parametrize(("before", "after"), [(2, None), (None, 3)])
def test_a_stage_is_found_by_another_number_of_processes(tmp_path, before, after):
    folder = str(tmp_path / "run")
    first, then = (
        [found_in(None, folder)] if n is None else several.values(n, found_in, folder) for n in (before, after)
    )
    size = len(first[0][2])
    for rows, (world, found) in zip((first, then), ((before, False), (after, True)), strict=True):
        each = -(-size // (world or 1))
        assert [row[0] for row in rows] == [min(each, size - rank * each) for rank in range(world or 1)]
        assert [row[1] for row in rows] == [found] * len(rows)
        for row in rows:
            assert torch.equal(row[2], first[0][2])
            assert row[3] == first[0][3]
            assert torch.equal(row[4], first[0][4])


def in_blocks(group):
    """Projections with room for two or three directions at once only, and for all; and points of the subspace."""
    case = cases.make("layer_norm")
    risk = case.risk(group=group)
    space = cp.top_eigenspace(risk, dim=5, tol=1e-9)
    whole = cp.project(risk, space)
    found = []
    for held in (2, 3, 4):
        Budget.columns_held = lambda self, held=held: held
        found.append(cp.project(risk, space))
    z = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
    columns = space.columns()
    same = [
        torch.equal(space.columns([3, 1]), columns[:, [3, 1]]),
        torch.allclose(space.at(z), columns @ z, **cases.EXACT),
        torch.allclose(space.inner(space), torch.eye(5, dtype=torch.float64), **cases.EXACT),
        torch.equal(space.truncate(2).columns(), columns[:, :2]),
        space.num_params == risk.num_params,
    ]
    elsewhere = cp.mean_projection(risk[:3], space)
    return whole, found, same, elsewhere, cp.mean_projection(risk[:3], cp.Subspace.from_basis(columns))


def test_examples_are_projected_along_as_many_directions_as_there_is_room_for():
    for whole, found, same, elsewhere, by_columns in several.values(2, in_blocks):
        assert len(found) == 3
        for one in found:
            assert torch.allclose(one.gradient, whole.gradient, **cases.EXACT)
            assert torch.allclose(one.hessian, whole.hessian, **cases.EXACT)
            assert torch.equal(one.loss, whole.loss)
        assert same == [True] * 5
        assert torch.allclose(elsewhere.hessian, by_columns.hessian, **cases.EXACT)
        assert torch.allclose(elsewhere.gradient, by_columns.gradient, **cases.EXACT)


def of_others(group):
    risk = cases.make("mlp").risk(group=group)
    return cp.project(risk.by_itself(), cp.top_eigenspace(risk, dim=1))


def test_a_subspace_that_others_hold_a_part_of_is_refused_for_a_risk_of_one_process():
    for outcome in several.run(2, of_others):
        assert type(outcome.error) is cp.ArgumentError
        assert "make the risk with the same group=" in str(outcome.error)


# ---- the solver's state ----------------------------------------------------------------------------------------------


def left(group, path):
    """An eigenspace whose budget ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = cp.top_eigenspace(cases.make("mlp").risk(group=group), dim=2, tol=1e-9, max_matvecs=12, checkpoint=path)
    return few.num_matvecs


def finished(group, path):
    """The eigenspace, how many products were made for it this time, and what is left on the disk."""
    made, usual = [], KrylovBasis.product

    def product(self, block):
        made.append(block.shape[1])
        return usual(self, block)

    KrylovBasis.product = product
    try:
        whole = cp.top_eigenspace(cases.make("mlp").risk(group=group), dim=2, tol=1e-9, checkpoint=path)
    finally:
        KrylovBasis.product = usual
    return whole.eigenvalues, whole.num_matvecs, sum(made), sorted(file.name for file in Path(path).parent.iterdir())


def in_processes(count, function, path):
    return [function(None, path)] if count is None else several.values(count, function, path)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, None), (None, 2)])
def test_an_unfinished_eigenspace_goes_on_in_any_number_of_processes(tmp_path, before, after):
    path = tmp_path / "state"
    expected = cp.top_eigenspace(cases.make("mlp").risk(), dim=2, tol=1e-9)
    used = in_processes(before, left, str(path))[0]
    names = ["state"] if before is None else [f"state.{rank}-of-{before}" for rank in range(before)]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    Path(f"{path}.0-of-7").write_bytes(b"of seven processes, without the others' files")
    for eigenvalues, products, made, files in in_processes(after, finished, str(path)):
        assert torch.allclose(eigenvalues, expected.eigenvalues, **cases.EXACT)
        assert products == used + made
        assert files == []
