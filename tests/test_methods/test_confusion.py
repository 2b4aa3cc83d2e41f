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


def test_sums_fade_by_a_twentieth_each_step():
    """Of one class: 1 and 3, and in the next step 6 and 6."""
    first, second = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ((1, 3), (6, 6)))
    sums = _Sums.empty(1, first)
    for embeddings in (first, second):
        sums.add(embeddings, torch.zeros(2, dtype=torch.long))
    mean = (0.95 * 4 + 12) / (0.95 * 2 + 2)
    assert sums.counts.item() == pytest.approx(3.9) and sums.means.item() == pytest.approx(mean)
    assert sums.scatter.item() == pytest.approx(0.95 * (1 + 1) + 2 * (6 - mean) ** 2)


def test_the_reader_by_hand():
    """Means -1 and 1 with a variance of 1 around each: 2 around that of all, and a tenth added."""
    counts, totals, scatter = torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0]])
    told = _Sums(counts, totals, scatter).told(torch.tensor([[3.0]] * 2), torch.tensor([0, 1]))
    assert told.tolist() == pytest.approx([-3 / 2.2, 3 / 2.2])


def test_layers_that_say_the_same_say_it_once():
    """The reader does not see how wide a layer's numbers are, and the loss is a mean of both."""
    one, two = ClassConfusion(), ClassConfusion()
    for seed in range(_WARM_UP + 1):
        embeddings, classes = shown([[-1, 0, 0], [1, 0, 0]], seed)
        alone = one.loss([embeddings], classes, 2)
        both = two.loss([embeddings, 2 * embeddings], classes, 2)
    assert both.item() == pytest.approx(alone.item()) and alone > 0.3


def test_a_task_begins_with_a_reader_that_knows_nothing():
    part = warm(ClassConfusion(), [[-1, 0, 0], [1, 0, 0]])
    part.before_task(None)
    assert part.state_dict() == dict(steps=0, layers=[])


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
