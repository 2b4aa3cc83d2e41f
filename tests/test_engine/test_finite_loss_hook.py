import pytest
import torch

from mmgslora.engine import FiniteLossHook
from mmgslora.errors import ForgettingError


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_names_the_term(value):
    outputs = dict(
        loss=torch.tensor(value), retain_loss_cls=torch.tensor(1.0), loss_x=torch.tensor(value)
    )
    with pytest.raises(ForgettingError, match="'loss_x' became -?(nan|inf)"):
        FiniteLossHook().after_train_iter(None, 0, outputs=outputs)


def test_finite_losses_and_other_values_pass():
    FiniteLossHook().after_train_iter(
        None, 0, outputs=dict(loss_x=torch.tensor(1.0), accuracy=torch.tensor(float('nan')))
    )
