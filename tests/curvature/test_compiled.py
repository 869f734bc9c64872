"""The compiled product is the plain one, or is not used and a warning says so. One real compilation: it is slow."""

import shutil
import warnings

import pytest
import torch
from torch import nn

import curvprobe as cp
from tests import cases
from tests.cases import EXACT, block_of


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_the_compiled_product_is_the_plain_one(monkeypatch):
    uses, compiler = [], torch.compile

    def counted(function):
        compiled = compiler(function)
        return lambda *arguments: uses.append(1) or compiled(*arguments)

    monkeypatch.setattr(torch, "compile", counted)
    x = block_of(5, 2)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x, x[:, :1].sin()), microbatch_size=5)
    H, V = cp.hessian(risk, compile=True), block_of(risk.num_params, 3)
    plain = cp.hessian(risk) @ V
    assert uses == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.allclose(H @ V, plain, **EXACT)
    assert not [w for w in caught if "compiled product" in str(w.message)]
    assert len(uses) == 4  # the comparison, and every column
    assert torch.allclose(H @ V[:, 0], plain[:, 0], **EXACT)
    assert len(uses) == 5


def broken(function):
    raise OSError("no compiler\nand more lines")


def lazily_broken(function):
    return lambda *_: broken(function)


def wrong(function):
    return lambda *arguments: {name: 1.01 * part for name, part in function(*arguments).items()}


def not_finite(function):
    return lambda *arguments: {name: part * float("nan") for name, part in function(*arguments).items()}


@pytest.mark.parametrize("microbatch_size", [2, None])
@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (lazily_broken, "OSError: no compiler$"),
        (wrong, "it disagrees"),
        (not_finite, "it is not finite"),
    ],
)
def test_a_compiled_product_that_fails_is_not_used(monkeypatch, microbatch_size, compiler, message):
    monkeypatch.setattr(torch, "compile", compiler)
    risk = cases.make("mlp").risk(microbatch_size=microbatch_size)
    H, V = cp.hessian(risk, compile=True), block_of(31, 2)
    plain = cp.hessian(risk) @ V
    with pytest.warns(UserWarning, match=f"the compiled product is not used: {message}"):
        product = H @ V
    assert torch.equal(product, plain)
    assert torch.equal(H @ V, plain)  # and no second warning, which would be an error


def test_a_compiler_that_is_not_there_is_no_error(monkeypatch):
    """torch.compile itself raises, as it does on a platform that it does not support."""
    monkeypatch.setattr(torch, "compile", broken)
    risk = cases.make("mlp").risk()
    with pytest.warns(UserWarning, match="the compiled product is not used: OSError"):
        product = cp.hessian(risk, compile=True) @ block_of(31, 1)
    assert torch.equal(product, cp.hessian(risk) @ block_of(31, 1))


@pytest.mark.parametrize("microbatch_size", [2, 4, None])
def test_what_is_compiled_is_right_for_every_microbatch(monkeypatch, case, microbatch_size):
    """Forward over reverse, not compiled: torch.compile takes the same function."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    risk = case.risk(microbatch_size=microbatch_size)
    V = block_of(risk.num_params, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where forward mode is wrong, the plain product is used
        assert torch.allclose(cp.hessian(risk, compile=True) @ V, cp.hessian(risk) @ V, **EXACT)


def test_it_is_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(1) or function)
    risk = cases.make("mlp").risk(microbatch_size=4)
    H = cp.hessian(risk, compile=True)
    assert compiled == []
    for _ in range(3):
        _ = H @ block_of(31, 2)
    assert compiled == [1]


def test_only_the_hessian_is_compiled():
    risk = cases.make("mlp").risk()
    with pytest.raises(ValueError, match="only products with the Hessian"):
        cp.CurvatureMatrix(risk, "ggn", compile=True)
    with pytest.raises(ValueError, match="only products with the Hessian"):
        cp.top_eigenspace(risk, dim=2, curvature="ggn", compile=True)


def test_the_eigenspace_of_compiled_products(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    risk = cases.make("mlp").risk()
    plain, compiled = (cp.top_eigenspace(risk, dim=3, tol=1e-8, compile=c) for c in (False, True))
    assert torch.allclose(compiled.eigenvalues, plain.eigenvalues, rtol=1e-8)


def test_nothing_is_left_changed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    case, state = cases.make("batch_norm"), torch.get_rng_state()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    _ = cp.hessian(case.risk(), compile=True) @ block_of(39, 1)
    assert all(torch.equal(value, case.model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)
