import pytest

import mmgslora.register  # noqa: F401

from .made_run import MadeRun, make_run


@pytest.fixture
def made(tmp_path) -> MadeRun:
    return make_run(tmp_path)
