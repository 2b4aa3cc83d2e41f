"""The plain model's weights of whatever file a run can start from."""

import pytest
import torch

from mmgslora.errors import ForgettingError
from mmgslora.requests.checkpoint import plain_state

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
