import pytest


@pytest.fixture
def made(tmp_path):
    from .made_run import make_run

    return make_run(tmp_path)
