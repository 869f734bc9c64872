import pytest

from tests import cases


@pytest.fixture(params=list(cases.CASES))
def case(request: pytest.FixtureRequest) -> cases.Case:
    """Every kind of layer in turn."""
    return cases.make(request.param)
