import pytest


@pytest.fixture
def model():
    from .blocks import two_blocks

    return two_blocks()


@pytest.fixture
def groups(model):
    from mmgslora.lora import discover_groups

    return discover_groups(model)
