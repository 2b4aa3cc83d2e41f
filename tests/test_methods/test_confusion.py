"""The closed-form reader: what it finds, what it asks for, what survives a kill."""

import pytest
import torch

from mmgslora.methods.confusion import _WARM_UP, ClassConfusion, _Sums


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
    # Variances around the mean of all 5, 1 and 1, a tenth of their mean added; means 2 from it.
    means = torch.tensor([[-2.0, 0, 0], [2, 0, 0]], dtype=torch.float64)
    found = apart.loss([means], torch.tensor([0, 1]), 2).item()
    assert found == pytest.approx(2 * 2 / (5 + 0.1 * 7 / 3), rel=0.05)


def test_the_mean_over_all_objects_is_pillais_trace(monkeypatch):
    """Of five classes in three dimensions, and against the sums of squares of the textbook."""
    monkeypatch.setattr('mmgslora.methods.confusion._RIDGE', 0.0)
    monkeypatch.setattr('mmgslora.methods.confusion._MOMENTUM', 1.0)
    embeddings, classes = shown([[0, 1, 0], [2, 0, 0], [0, 0, 3], [1, 1, 1], [-2, 0, 1]], count=90)
    sums = _Sums.empty(5, embeddings)
    sums.add(embeddings, classes)
    means = torch.stack([embeddings[classes == c].mean(0) for c in range(5)])
    within = embeddings - means[classes]
    between = (means - embeddings.mean(0))[classes]
    within, between = within.T @ within, between.T @ between
    pillai = torch.trace(between @ torch.linalg.inv(within + between))
    assert sums.told(embeddings, classes).mean().item() == pytest.approx(pillai.item())


def test_the_slope_is_that_of_the_information(monkeypatch):
    """Of log det(within + between) / 2 through the means, by autograd."""
    monkeypatch.setattr('mmgslora.methods.confusion._RIDGE', 0.0)
    embeddings, classes = shown([[0, 1, 0], [2, 0, 0], [0, 0, 3]], count=60)
    sums = _Sums.empty(3, embeddings)
    sums.add(embeddings, classes)
    embeddings.requires_grad_()
    sums.told(embeddings, classes).mean().backward()
    found, embeddings = embeddings.grad, embeddings.detach().requires_grad_()
    means = torch.stack([embeddings[classes == c].mean(0) for c in range(3)])
    between = (means - embeddings.detach().mean(0))[classes]
    within = (embeddings - means[classes]).detach()
    total = (within.T @ within + between.T @ between) / len(classes)
    (torch.logdet(total) / 2).backward()
    assert torch.allclose(found, embeddings.grad)


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


def test_one_class_is_told_from_others_which_stay_where_they_are():
    """Against two classes of which the second has no gradient."""
    alone, pair = ClassConfusion(), ClassConfusion()
    for seed in range(_WARM_UP + 1):
        embeddings, classes = shown([[-1, 0, 0], [1, 0, 0]], seed)
        mine, theirs = embeddings[classes == 0].requires_grad_(), embeddings[classes == 1]
        theirs.requires_grad_()
        found = alone.loss([mine], torch.zeros(len(mine), dtype=torch.long), 1, [theirs])
        told = pair._layers and pair._layers[0].told(mine, torch.zeros(len(mine), dtype=torch.long))
        pair.loss([torch.cat([mine, theirs])], torch.arange(40) // 20, 2)
    assert found.item() == pytest.approx(told.mean().item()) and found > 0.3
    found.backward()
    assert theirs.grad is None and (mine.grad[:, 0] < 0).all()


def test_no_objects_in_a_batch():
    part = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]])
    none = torch.zeros(0, 3, dtype=torch.float64)
    assert part.loss([none], torch.zeros(0, dtype=torch.long), 2) == 0


def test_what_it_knows_survives_a_kill():
    part, other = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]]), ClassConfusion()
    other.load_state_dict(part.state_dict())
    embeddings, classes = shown([[-1, 0, 0], [1, 0, 0]], 77)
    assert other.loss([embeddings], classes, 2) == part.loss([embeddings], classes, 2) > 0


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='no float16 in autocast')
def test_half_precision_of_the_network_is_not_that_of_the_sums():
    """Embeddings of a norm as large as a face recogniser's scale, of squares beyond float16."""
    part, plain = ClassConfusion(), ClassConfusion()
    for seed in range(_WARM_UP + 1):
        embeddings, classes = shown([[-40, 0, 0], [40, 0, 0]], seed)
        expected = plain.loss([embeddings.float() * 8], classes, 2)
        with torch.autocast('cpu', dtype=torch.float16):
            found = part.loss([embeddings.float() * 8], classes, 2)
    assert found.isfinite() and found.item() == pytest.approx(expected.item())
