import math

import pytest
import torch

import curvprobe as cp
from tests import cases


@pytest.fixture(scope="module")
def compared():
    case = cases.make("mlp")
    risk = case.risk()
    new = risk.on(case.candidates)[:1]
    subspace = cp.top_eigenspace(risk, dim=3)
    laws = cp.default_laws(risk, subspace, sigma=1e-3)
    return risk, new, subspace, laws, cp.compare_laws(risk, new, laws, num_probes=64)


def test_every_law_is_that_of_the_functions_one_by_one(compared):
    risk, new, _, laws, table = compared
    assert table.names == tuple(laws)
    assert {"Laplace", "Gauss-Newton", "deformation", "gradients", "random", "normalised by tensor"} <= set(laws)
    for i, law in enumerate(laws.values()):
        closed = cp.closed_form(risk, new, law)
        assert float(table.closed[i]) == pytest.approx(closed.value)
        assert float(table.shape[i]) == pytest.approx(closed.shape)
        assert float(table.closed_stderr[i]) == pytest.approx(closed.stderr)


def test_the_true_loss_agrees_where_the_model_is_valid(compared):
    *_, laws, table = compared
    for i, name in enumerate(laws):
        if name != "Laplace":  # its scale is the data's, not a small one
            error = math.hypot(float(table.true_stderr[i]), float(table.closed_stderr[i]))
            model = 1e-4 * float(table.closed[i])
            assert abs(float(table.true[i] - table.closed[i])) < 5 * error + model, name


def test_on_a_quadratic_loss_every_law_is_the_dense_formula():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=generator).double(), torch.randn(9, 1, generator=generator).double()
    model = torch.nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.randn(1, 4, generator=generator).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:8], y[:8]))
    new, sigma = risk.on((x[8:], y[8:])), 0.7  # large: the shape is no small part
    laws = cp.default_laws(risk, cp.top_eigenspace(risk, dim=2, tol=1e-8), sigma=sigma, tol=1e-8)
    table = cp.compare_laws(risk, new, laws, num_probes=2000)
    w = model.weight.detach()[0]
    errors = x @ w - y[:, 0]
    gradients, hessians = 2 * errors[:, None] * x, 2 * x[:, :, None] * x[:, None, :]
    level = (errors[8].square() - errors[:8].square().mean()) / 9
    slope, bend = (gradients[8] - gradients[:8].mean(0)) / 9, (hessians[8] - hessians[:8].mean(0)) / 9
    values, vectors = torch.linalg.eigh(hessians[:8].mean(0))
    top, scale = vectors[:, -2:], (8 * (values[-2:] + laws["Laplace"].damping)).rsqrt()
    spread = gradients[:8] - gradients[:8].mean(0)
    aligned = torch.linalg.eigh(spread.T @ spread).eigenvectors[:, -2:]
    expected = {
        "Laplace": top * scale,
        "Gauss-Newton": top * sigma,  # of a linear model the same matrix
        "deformation": aligned * sigma,
        "gradients": torch.linalg.qr(gradients[:2].T).Q * sigma,
        "random": laws["random"].subspace.basis * sigma,
    }
    for name, columns in expected.items():
        i = table.names.index(name)
        c, B = columns.T @ slope, columns.T @ bend @ columns
        parts = torch.stack([(level + B.trace() / 2).square(), c.square().sum(), B.square().sum() / 2])
        assert torch.allclose(table.parts[i], parts, rtol=1e-5), name
        assert float(table.shape[i]) > 0.01 * float(table.closed[i])
        assert abs(float(table.true[i] - parts.sum())) < 5 * float(table.true_stderr[i]) + 1e-9, name
    for name in ("normalised by tensor", "normalised by filter"):
        i = table.names.index(name)
        error = math.hypot(float(table.true_stderr[i]), float(table.closed_stderr[i]))
        assert abs(float(table.true[i] - table.closed[i])) < 5 * error
        assert error < 0.2 * float(table.shape[i])


def test_normalised_laws_go_as_far_as_the_isotropic_one(compared):
    risk, _, _, laws, _ = compared
    for name in ("normalised by tensor", "normalised by filter"):
        deviation = laws[name].deviation(risk)
        assert float(deviation.square().mean().sqrt()) == pytest.approx(1e-3, rel=1e-6)


def test_laplace_is_damped_until_it_is_a_law(compared):
    risk, _, subspace, _, _ = compared
    bottom = cp.top_eigenspace(risk, dim=3, which="smallest")
    law = cp.default_laws(risk, bottom, sigma=1e-3)["Laplace"]
    assert float(law.scale.max()) == pytest.approx((len(risk) * 1e-3 * float(bottom.eigenvalues.abs().max())) ** -0.5)
    assert cp.default_laws(risk, subspace, sigma=1e-3)["Laplace"].damping == max(
        0.0, 1e-3 * float(subspace.eigenvalues.max()) - float(subspace.eigenvalues.min())
    )


def test_the_table_and_the_json_say_the_same(compared):
    *_, table = compared
    record = table.to_json()
    for i, name in enumerate(table.names):
        assert record[name]["closed"] == float(table.closed[i])
        assert sum(record[name][part] for part in ("level", "slope", "curvature")) == pytest.approx(
            record[name]["closed"]
        )
        assert f"{float(table.closed[i]):.5e}" in str(table)


class Corner:
    """A law of one's own that is not Gaussian: all parameters one step up, or all one step down."""

    def displacements(self, risk, num_probes, seed):
        signs = torch.randint(2, (num_probes,), generator=torch.Generator().manual_seed(seed))
        for sign in signs.tolist():
            yield torch.full((risk.num_params,), 1e-3 * (2 * sign - 1), dtype=risk.dtype)


def test_a_law_that_is_not_gaussian_has_monte_carlo_only(compared):
    risk, new, *_ = compared
    table = cp.compare_laws(risk, new, {"corner": Corner(), "point": cp.PointProbe()}, num_probes=8, seed=2)
    expected = cp.direct_monte_carlo(risk, new, Corner(), num_probes=8, seed=2)
    assert float(table.true[0]) == expected.value
    assert float(table.true_stderr[0]) == expected.stderr
    assert float(table.true[1]) == pytest.approx(cp.delta1(risk, new).value ** 2, rel=1e-12)
    assert bool(table.closed.isnan().all())
    assert "corner" in str(table)


def test_what_is_no_law_or_no_eigenspace_is_refused(compared):
    risk, new, *_ = compared
    with pytest.raises(ValueError, match="no law came"):
        cp.compare_laws(risk, new, {})
    with pytest.raises(ValueError, match="the subspace is a Subspace; expected an Eigenspace"):
        cp.default_laws(risk, cp.random_subspace(risk, 2), sigma=1e-3)
    with pytest.raises(ValueError, match="sigma"):
        cp.default_laws(risk, cp.top_eigenspace(risk, dim=2), sigma=-1.0)


def test_an_analysis_has_the_laws_when_asked(compared, tmp_path):
    risk, _, _, _, _ = compared
    candidates = cases.make("mlp").candidates
    analysis = cp.analyze(risk, candidates, dim=3, sigma=1e-3, laws=True, out=tmp_path)
    expected = cp.compare_laws(
        risk, risk.on(candidates)[:1], cp.default_laws(risk, analysis.subspace, 1e-3), num_probes=64
    )
    assert torch.equal(analysis.laws.true, expected.true)
    assert "under other laws" in analysis.table()
    assert set(analysis.to_json()["laws"]) == set(expected.names)
    again = cp.analyze(risk, candidates, dim=3, sigma=1e-3, laws=True, out=tmp_path)
    assert again.seconds["laws"] == 0
    assert again.laws.names == expected.names
    assert cp.analyze(risk, candidates, dim=3, sigma=1e-3, out=tmp_path).laws is None
