"""What the tests of experiments share: the folder of finished points, and a growing sample."""

import pytest

for name in ("transformers", "sklearn", "matplotlib"):
    pytest.importorskip(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")
