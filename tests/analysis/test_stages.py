from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.analysis.stationarity import DESCENT_STEPS
from curvprobe.tasks.digits import digits


def test_same_seed_same_numbers(case, analysis):
    again = cp.analyze(case.risk(), case.candidates, dim=4, tol=1e-8, seed=1)
    assert again.metrics() == analysis.metrics()


def test_stages_are_reused_and_a_changed_model_is_not(case, tmp_path):
    first = cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    again = cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    assert all(first.seconds.values())
    assert not any(again.seconds.values())
    assert first.metrics() == again.metrics()
    with torch.no_grad():
        case.model[0].bias[0] += 1e-3
    try:
        moved = cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    finally:
        with torch.no_grad():
            case.model[0].bias[0] -= 1e-3
    assert all(moved.seconds.values())


def test_an_interrupted_run_goes_on_from_the_last_finished_stage(case, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("curvprobe.analysis.stages.subspace_validity", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    assert not (tmp_path / "result.json").exists()
    finished = cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    assert [name for name, seconds in finished.seconds.items() if seconds] == [
        "validity",
        "monte_carlo",
        "isotropic",
        "isotropic_model",
        "full_space",
        "gradient_norms",
        "stationarity",
        "surface",
    ]


def test_a_loss_that_differs_in_its_derivatives_only_is_not_taken_for_the_other(tmp_path):
    """Both losses are 0 at the solution of an interpolating model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = torch.nn.Linear(3, 2).double(), torch.randn(12, 3, dtype=torch.float64)
    data, other = (x, model(x).detach()), (x + 1, model(x + 1).detach() + 1)
    first = cp.analyze(cp.EmpiricalRisk(model, cp.losses.mse, data), other, dim=2, out=tmp_path)
    scaled = cp.EmpiricalRisk(model, lambda o, b: 10 * cp.losses.mse(o, b), data)
    again = cp.analyze(scaled, other, dim=2, out=tmp_path)
    assert torch.allclose(again.subspace.eigenvalues, 10 * first.subspace.eigenvalues)


def test_the_microbatch_size_does_not_matter_to_reuse(case, tmp_path):
    cp.analyze(case.risk(), case.candidates, dim=2, out=tmp_path)
    again = cp.analyze(case.risk(microbatch_size=7), case.candidates, dim=2, out=tmp_path)
    assert not any(again.seconds.values())


def test_stages_belong_to_the_basis_they_were_computed_in(case, tmp_path, monkeypatch):
    cp.analyze(case.risk(), case.candidates, dim=2, out=tmp_path)
    (tmp_path / "eigenspace.json").unlink()
    turned = cp.top_eigenspace(case.risk(), dim=2)
    turned = replace(turned, basis=-turned.basis)
    monkeypatch.setattr("curvprobe.analysis.stages.top_eigenspace", lambda *_, **__: turned)
    seconds = cp.analyze(case.risk(), case.candidates, dim=2, out=tmp_path).seconds
    of_the_whole_space = {"examination", "full_space", "isotropic", "isotropic_model", "gradient_norms"}
    assert {name for name, taken in seconds.items() if not taken} == of_the_whole_space


def test_a_folder_never_holds_the_result_of_other_stages(case, tmp_path, monkeypatch):
    cp.analyze(case.risk(), case.candidates, dim=2, out=tmp_path)
    monkeypatch.setattr("curvprobe.analysis.stages.subspace_validity", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_key_tells_losses_apart_that_differ_in_their_gradient_only():
    """Same values everywhere: one of them holds a part of the output fixed when it is differentiated."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(3, 2)

    def detached(outputs, batch):
        return cp.losses.mse(torch.cat([outputs[:, :1], outputs[:, 1:].detach()], dim=1), batch)

    keys = {cp.EmpiricalRisk(model, loss, (x, x[:, :2])).key() for loss in (cp.losses.mse, detached)}
    assert len(keys) == 2


def test_a_key_does_not_depend_on_float32_rounding():
    """Microbatches change the last bits of losses and gradients, at a minimiser most of the gradient's."""
    task = digits(k=200, rounds=4)
    keys = {replace(task, microbatch_size=size).risk().key() for size in (1, 17, None)}
    assert len(keys) == 1


def test_an_interrupted_eigenspace_is_continued(case, tmp_path, monkeypatch):
    options = {"dim": 4, "sigma": 1e-2, "tol": 1e-8, "surface": 0}
    whole = cp.analyze(case.risk(), case.candidates, **options).subspace
    product, calls = cp.CurvatureMatrix.__matmul__, []

    def matmul(matrix, vectors):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return product(matrix, vectors)

    monkeypatch.setattr(cp.CurvatureMatrix, "__matmul__", matmul)
    monkeypatch.setattr("curvprobe.analysis.stages.full_space_moment", lambda *_, **__: cp.Estimate(0.0, 0.0))
    one = cp.Stationarity(1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr("curvprobe.analysis.stages.stationarity", lambda *_, **__: one)
    zeros = torch.zeros(32, dtype=torch.float64)
    monkeypatch.setattr("curvprobe.analysis.stages.quadratic_model_at", lambda *_: zeros)
    with pytest.raises(KeyboardInterrupt):
        cp.analyze(case.risk(), case.candidates, **options, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"eigenspace.unfinished", ".lock"}
    subspace = cp.analyze(case.risk(), case.candidates, **options, out=tmp_path).subspace
    assert len(calls) == whole.num_matvecs + 1
    assert subspace.num_matvecs == whole.num_matvecs
    assert torch.equal(subspace.basis, whole.basis)
    assert not (tmp_path / "eigenspace.unfinished").exists()


def test_a_larger_max_matvecs_continues_the_eigenspace_in_the_folder(case, tmp_path):
    options = {"dim": 6, "sigma": 1e-2, "tol": 1e-8, "surface": 0, "out": tmp_path}
    with pytest.warns(cp.ConvergenceWarning):
        cp.analyze(case.risk(), case.candidates, **options, max_matvecs=14)
    product, calls = cp.CurvatureMatrix.__matmul__, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp.CurvatureMatrix, "__matmul__", lambda H, v: calls.append(v[0].numel()) or product(H, v))
        analysis = cp.analyze(case.risk(), case.candidates, **options, max_matvecs=500)
    assert bool(analysis.subspace.converged.all())
    assert sum(calls) <= analysis.subspace.num_matvecs - 12 + DESCENT_STEPS  # those of the check of stationarity


def test_what_a_check_could_not_decide_is_in_the_notes_also_of_a_later_run(tmp_path):
    """Blank inputs put every unit of a network without biases exactly on its kink."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
        x, y = torch.randn(40, 4, dtype=torch.float64), torch.randint(2, (40,))
    torch.nn.init.zeros_(model[0].bias)
    x[0] = 0

    def analysed() -> cp.Analysis:
        risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x[:30], y[:30]))
        return cp.analyze(risk, (x[30:], y[30:]), dim=2, sigma=1e-3, out=tmp_path)

    first, again = analysed(), analysed()
    assert not any(again.seconds.values())
    for analysis in (first, again):
        assert any(
            "In doubt, second derivatives: whether a hessian product is right could" in note for note in analysis.notes
        )
