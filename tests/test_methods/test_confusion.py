"""The closed-form reader: what it finds, what it asks for, what survives a kill."""

import math

import pytest
import torch

from mmgslora.methods.confusion import _WARM_UP, ClassConfusion


def shown(means, seed=0, count=40):
    """Embeddings (n, 3) of unit variance around these means, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor(means, dtype=torch.float64)
    classes = torch.arange(count) % len(means)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return means[classes] + noise, classes


def warm(part, means, steps=_WARM_UP):
    for seed in range(steps):
        embeddings, classes = shown(means, seed)
        part.loss([embeddings], classes, len(means))
    return part


def test_nothing_is_asked_before_the_reader_knows_anything():
    part = ClassConfusion()
    embeddings, classes = shown([[0, 0, 0], [9, 0, 0]])
    assert part.loss([embeddings], classes, 2) == 0


def test_classes_of_one_mean_are_as_confused_as_can_be():
    apart = warm(ClassConfusion(), [[-2, 0, 0], [2, 0, 0]])
    same = warm(ClassConfusion(), [[1, 0, 0], [1, 0, 0]])
    at_rest, classes = shown([[1, 0, 0], [1, 0, 0]], 99)
    assert same.loss([at_rest], classes, 2).item() == pytest.approx(0, abs=0.05)
    # Means 4 apart, variance 1 (1.1 with the ridge): half of 4 * 2 / 1.1 nats of odds at a mean.
    odds = 8 / 1.1
    wanted = (math.log1p(math.exp(-odds)) + math.log1p(math.exp(odds))) / 2 - math.log(2)
    means = torch.tensor([[-2.0, 0, 0], [2, 0, 0]], dtype=torch.float64)
    found = apart.loss([means], torch.tensor([0, 1]), 2).item()
    assert found == pytest.approx(math.log1p(wanted), rel=0.1)


def test_the_gradient_moves_classes_towards_each_other():
    part = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]])
    means = torch.tensor([[-1.0, 0, 0], [1, 0, 0]], dtype=torch.float64, requires_grad=True)
    part.loss([means], torch.tensor([0, 1]), 2).backward()
    step = -means.grad
    assert step[0, 0] > 0 > step[1, 0] and step[:, 1:].abs().max() < step[:, 0].abs().min() / 5


def test_one_class_has_none_to_be_told_from():
    part = warm(ClassConfusion(), [[3, 0, 0]])
    embeddings, classes = shown([[3, 0, 0]])
    embeddings.requires_grad_()
    loss = part.loss([embeddings], classes, 1)
    loss.backward()
    assert loss == 0 and not embeddings.grad.any()


def test_no_objects_in_a_batch():
    part = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]])
    none = torch.zeros(0, 3, dtype=torch.float64)
    assert part.loss([none], torch.zeros(0, dtype=torch.long), 2) == 0


def test_what_it_knows_survives_a_kill():
    part, other = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]]), ClassConfusion()
    other.load_state_dict(part.state_dict())
    embeddings, classes = shown([[-1, 0, 0], [1, 0, 0]], 77)
    assert other.loss([embeddings], classes, 2) == part.loss([embeddings], classes, 2) > 0
