"""What is refused is a ValueError, and also what Python calls such an error, so that code which catches it works."""

import sys

import pytest

import curvprobe as cp
from curvprobe import errors
from curvprobe.tasks import digits
from tests import cases

KINDS = {
    "CurvprobeError": (ValueError,),
    "ArgumentError": (errors.CurvprobeError,),
    "ArgumentTypeError": (errors.ArgumentError, TypeError),
    "PositionError": (errors.ArgumentError, IndexError),
    "CannotProbeError": (errors.CurvprobeError,),
    "CannotProbeTypeError": (errors.CannotProbeError, TypeError),
    "UserCodeError": (errors.CannotProbeError, RuntimeError),
    "NotFiniteError": (errors.CannotProbeError,),
    "RankError": (errors.CurvprobeError, RuntimeError),
    "LostError": (errors.RankError,),
    "WriteError": (errors.CurvprobeError, OSError),
    "MissingExtraError": (errors.CurvprobeError, ImportError),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_error_is_a_value_error_and_of_pythons_own_kind(name):
    error = getattr(errors, name)
    for kind in (ValueError, errors.CurvprobeError, *KINDS[name]):
        with pytest.raises(kind, match="the remedy"):
            raise error("the remedy")


def test_there_are_no_others():
    assert {name for name in vars(errors) if name.endswith("Error")} == KINDS.keys()


@pytest.mark.parametrize("name", ["CurvprobeError", "ArgumentError", "CannotProbeError", "NotFiniteError"])
def test_those_to_be_caught_by_name_are_public(name):
    assert getattr(cp, name) is getattr(errors, name)


def test_what_is_refused_has_its_kind():
    case = cases.make("mlp")
    risk = case.risk()
    for error, refused in (
        (errors.ArgumentError, lambda: case.risk(microbatch_size=0)),
        (errors.ArgumentTypeError, lambda: case.risk(params="0.*")),
        (errors.PositionError, lambda: risk[len(risk)]),
        (errors.CannotProbeError, lambda: cp.EmpiricalRisk(case.model.train(), lambda o, b: o.sum(), case.data)),
        (errors.CannotProbeTypeError, lambda: cp.EmpiricalRisk(case.model, case.loss, case.data[0].numpy())),
        (errors.NotFiniteError, lambda: cp.EmpiricalRisk(case.model, lambda o, b: o[:, 0] / 0, case.data)),
    ):
        with pytest.raises(errors.CurvprobeError) as caught:
            refused()
        assert type(caught.value) is error


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    """Both a ValueError, as all that is refused, and an ImportError, as a missing package is."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(errors.MissingExtraError, match=r"scikit-learn: pip install 'curvprobe\[digits\]'") as missing:
        digits.digits()
    assert isinstance(missing.value, ImportError)
    assert isinstance(missing.value.__cause__, ImportError)
