"""The same numbers whatever number of processes share the work."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.curvature.covariance import covariance_product
from curvprobe.errors import CannotProbeTypeError
from curvprobe.risk.displaced import displaced_losses
from curvprobe.risk.probed import ProbedModel
from curvprobe.runtime import ranks
from curvprobe.runtime.plain import to_json
from curvprobe.runtime.store import Store
from tests import cases, several

NAMES = ("mlp", "layer_norm", "tied", "weighted", "convolution")


CONVERGED = "layer_norm"
"""Whose eigenspace is sought until it is found; of the others the solver's first products are enough to compare."""


def few_products(risk, dim=3):
    """An eigenspace that is not found yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cp.ConvergenceWarning)
        return cp.top_eigenspace(risk, dim=dim, max_matvecs=dim + 5)


def numbers(group, name, microbatch_size):
    """Of everything that processes share, on one of the small models."""
    case = cases.make(name)
    risk = case.risk(group=group, microbatch_size=microbatch_size)
    new, n = risk.on(case.candidates), risk.num_params
    block = cases.block_of(n, 3)
    H, few = cp.hessian(risk), risk[:1]
    part = risk.ranks.share(n)
    space = cp.top_eigenspace(risk, dim=3, tol=1e-9) if name == CONVERGED else few_products(risk)
    sample = cp.project(risk, space)
    parts = cp.full_space_parts(risk, new, sigma=0.01, num_probes=4)
    return {
        "losses": risk.losses(),
        "weights": risk.weights,
        "value": torch.tensor([risk.value(), few.value(), risk.total_weight], dtype=torch.float64),
        "gradient": risk.gradient(),
        "gradient of one": few.gradient(),
        "gradient beside": risk.gradient(0.01 * block[:, 0]),
        "product": H @ block,
        "product of rows": risk.ranks.whole(H.of_rows(block[part]), n) if group else H @ block,
        "product of one": cp.hessian(few) @ block[:, 0],
        "Gauss-Newton product": cp.ggn(risk) @ block[:, 1],
        "covariance": covariance_product(risk, block[:, 0]),
        "displaced": displaced_losses(risk, 0.01 * block.T),
        "eigenvalues": space.eigenvalues,
        "projector": space.columns() @ space.columns().T,
        "slopes": sample.gradient.abs(),
        "curvatures": sample.hessian.diagonal(dim1=1, dim2=2),
        "candidates": cp.project(new, space).mean().hessian.diagonal(dim1=1, dim2=2),
        "gradient norms": cp.gradient_norms(new),
        "full space": torch.stack([parts.level, parts.slope, parts.curvature]),
        "key": risk.key(),
        "products used": space.num_matvecs,
    }


@pytest.mark.parametrize(("world", "names", "microbatch_size"), [(2, NAMES, None), (3, NAMES[2:4], 1)])
def test_every_number_is_that_of_one_process(world, names, microbatch_size):
    found = several.values(world, all_numbers, names, microbatch_size)
    for name in names:
        expected = numbers(None, name, microbatch_size)
        for one in found:
            assert_close(one[name], expected)


def assert_close(found, expected):
    for what, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[what].dtype == value.dtype, what
            assert float((found[what] - value).abs().max()) <= 1e-10 * float(value.abs().max()), what
        else:
            assert found[what] == value, what


def all_numbers(group, names, microbatch_size):
    return {name: numbers(group, name, microbatch_size) for name in names}


def analysed(group, folder, name="weighted"):
    case = cases.make(name)
    with_laws = {"laws": True, "concentration": True} if name == "mlp" else {}
    found = cp.analyze(
        case.risk(group=group), case.candidates, dim=2, tol=1e-8, num_probes=4, surface=5, out=folder, **with_laws
    )
    return json.loads(to_json(found.to_json()))


def plain(record):
    """What an analysis has found, without what differs from run to run."""
    return {name: part for name, part in record.items() if name not in ("config", "timings", "seconds", "versions")}


def assert_same(found, expected, at=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for name in expected:
            assert_same(found[name], expected[name], f"{at}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{at}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True), at
    else:
        assert found == expected, at


@pytest.mark.parametrize("name", ["weighted", "mlp"])
def test_a_whole_analysis_is_that_of_one_process(tmp_path, name):
    first, second = several.values(2, analysed, str(tmp_path / "two"), name)
    assert json.dumps(first) == json.dumps(second)
    assert_same(plain(first), plain(analysed(None, str(tmp_path / "one"), name)))
    assert (tmp_path / "two" / "result.json").is_file()


# ---- what goes over the wire ---------------------------------------------------------------------------------------


def traffic(group):
    """Bytes of each exchange of two products along rows, and of the numbers of exchanges in a whole eigenspace."""
    risk = cases.make("mlp").risk(group=group)
    H, rows = cp.hessian(risk), risk.ranks.share(risk.num_params)
    vectors = cases.block_of(risk.num_params, 1)[rows]
    H.of_rows(vectors)
    risk.key()  # what is known from then on is not asked for again
    sent = []

    def counted(name, collective):
        def call(*tensors, **options):
            sent.append((name, max(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))))
            return collective(*tensors, **options)

        return call

    names = {(ranks, "_gather"): "gather", (ranks, "_scatter"): "scatter", (ranks.dist, "all_reduce"): "small"}
    for (owner, attribute), name in names.items():
        setattr(owner, attribute, counted(name, getattr(owner, attribute)))
    H.of_rows(vectors)
    of_product = list(sent)
    sent.clear()
    space = cp.top_eigenspace(risk, dim=2)
    large = [name for name, _ in sent if name != "small"]
    most = max(size for name, size in sent if name == "small")
    return risk.num_params, of_product, space.num_matvecs, large.count("gather"), large.count("scatter"), most


def test_a_product_is_one_gathering_and_one_scattering():
    for size, of_product, products, gathered, scattered, most in several.values(2, traffic):
        padded = 8 * 2 * -(-size // 2)
        assert [(name, count) for name, count in of_product if name != "small"] == [
            ("gather", padded),
            ("scatter", padded),
        ]
        assert sum(count for name, count in of_product if name == "small") <= 64
        assert (gathered, scattered) == (products, products)
        assert most <= 8 * 20**2  # coefficients in a basis


# ---- what goes wrong in one of them ----------------------------------------------------------------------------------


def fails_in(group, stage, folder):
    """An analysis in which the second process fails in the middle of a stage."""
    usual = Store.result

    def result(self, asked):
        def compute():
            raise ZeroDivisionError("in the second process")

        return usual(self, replace(asked, compute=compute) if asked.name == stage and group.rank() == 1 else asked)

    Store.result = result
    return analysed(group, folder)


@pytest.mark.parametrize("stage", ["eigenspace", "sample", "monte_carlo", "full_space"])
def test_a_process_that_fails_in_a_stage_ends_all(tmp_path, stage):
    first, second = several.run(2, fails_in, stage, str(tmp_path / "out"))
    assert max(first.seconds, second.seconds) < 30
    assert type(second.error) is ZeroDivisionError
    assert type(first.error) is cp.RankError
    assert str(first.error) == "rank 1 stopped with ZeroDivisionError: in the second process"
    assert not (tmp_path / "out" / "result.json").exists()


def has_no_loss(group):
    case = cases.make("mlp")
    return cp.EmpiricalRisk(case.model, case.loss if group.rank() == 0 else 3, case.data, group=group)


def test_what_is_refused_in_one_process_is_refused_in_all():
    first, second = several.run(2, has_no_loss)
    assert type(first.error) is type(second.error) is CannotProbeTypeError
    assert str(first.error) == f"rank 1: {second.error}"


def sees_no_number(group):
    case = cases.make("mlp")
    x, y = (torch.cat([part] * 12) for part in case.data)
    x[-1] = torch.nan
    return cp.EmpiricalRisk(case.model, case.loss, (x, y), group=group).value()


def test_a_loss_that_is_not_finite_in_one_process_is_named_in_all():
    for outcome in several.run(2, sees_no_number):
        assert type(outcome.error) is cp.NotFiniteError
        assert "the loss of example 71 of 72 is nan" in str(outcome.error)


def has_no_second_derivative(group):
    """The last example only, which the second process holds, goes through an operation with one derivative."""
    case = cases.make("mlp")

    def loss(outputs, batch):
        return case.loss(outputs, batch)

    risk = cp.EmpiricalRisk(case.model, loss, case.data, group=group)
    H = cp.hessian(risk)
    block = cases.block_of(risk.num_params, 1)
    H @ block
    if group.rank() == 1:
        H._own[0]._kept[0] = None
    return H @ block


def test_a_product_that_fails_in_one_process_fails_in_all():
    first, second = several.run(2, has_no_second_derivative)
    assert type(second.error) is AttributeError
    assert type(first.error) is cp.RankError
    assert str(first.error).startswith("rank 1, counting from example 3 on stopped with AttributeError")


def along_and_examined(group, folder):
    risk, case = cases.make("regression").risk(group=group), cases.make("mlp")
    found = cp.trajectory([risk[:3], risk[:6]], dim=1, sigma=0.01, out=folder)
    return found.dispersion, cp.examine(case.risk(group=group), case.candidates, dim=2).verdict


def test_a_trajectory_and_a_doctor_in_several_processes(tmp_path):
    expected, verdict = along_and_examined(None, None)
    for found, said in several.values(2, along_and_examined, str(tmp_path / "path")):
        assert torch.allclose(found, expected, **cases.EXACT)
        assert said == verdict
    assert (tmp_path / "path" / "result.json").is_file()


def short_of_memory(group):
    """Memory runs out in the second process only."""
    case = cases.make("layer_norm")
    risk = case.risk(group=group)
    new, usual = risk.on(case.candidates), ProbedModel.batch_losses

    def batch_losses(self, params, microbatch):
        if group.rank() == 1 and len(microbatch) > 1:
            raise torch.OutOfMemoryError("no room")
        return usual(self, params, microbatch)

    ProbedModel.batch_losses = batch_losses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cp.analyze(risk, new, dim=2, tol=1e-8, num_probes=4, surface=0, stages="quick")
    return found.expected.value, found.notes


def test_what_happens_in_one_process_is_said_by_all():
    case = cases.make("layer_norm")
    expected = cp.analyze(case.risk(), case.candidates, dim=2, tol=1e-8, num_probes=4, surface=0, stages="quick")
    (first, notes), (second, others) = several.values(2, short_of_memory)
    assert first == second == pytest.approx(expected.expected.value, rel=1e-9)
    assert notes == others
    assert any(note.startswith("Memory ran out with 3 examples in one pass") for note in notes)
    assert any(note.startswith("In doubt, parameters reached: the memory does not suffice") for note in notes)
