"""The plain model's weights of whatever file a run can start from."""

import resource

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.requests.checkpoint import plain_state, write_checkpoint

PLAIN = {
    'features.0.weight': torch.ones(2, 3),
    'classifier.1.weight': torch.ones(4, 2),  # a part of the network, not the wrapper of it
}


@pytest.mark.parametrize('before', ['', 'classifier.', 'module.', 'module.classifier.'])
def test_a_network_with_a_part_called_classifier(before):
    file = {f'{before}{key}': value for key, value in PLAIN.items()}
    assert plain_state(dict(state_dict=file), PLAIN) == PLAIN


def test_another_network_is_refused():
    with pytest.raises(ForgettingError, match="has 'neck', which the configured model lacks"):
        plain_state(dict(state_dict={'neck': torch.ones(1), **PLAIN}), PLAIN)


def test_a_file_that_does_not_fit_is_named_with_the_reason(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large: '.*/task_01.pth'"):
            write_checkpoint(tmp_path / 'task_01.pth', dict(weight=torch.zeros(100_000)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
