import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from test_audit.flat import FlatImages, FlatModel, make_objects, oracle, original
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.families.audited_model import Images, _passes, same_inside, without_rows


class Several(Images):
    """Images of several objects each."""

    def __init__(self, *labels) -> None:
        self.truth = labels

    def __len__(self) -> int:
        return len(self.truth)

    def labels(self, index: int) -> np.ndarray:
        return np.array(self.truth[index], dtype=int)


def test_holding_lists_each_image_once():
    data = Several([0, 1, 1], [2], [], [1, 2])
    assert data.holding([1, 2]).tolist() == [0, 1, 3]
    assert data.holding([5]).tolist() == []


def test_classes_take_turns_in_a_draw():
    # Class 1 has a single image; 0 and 2 share the rest.
    data = Several(*[[0]] * 50, [1], *[[2]] * 50)
    drawn = data.draw([0, 1, 2], 21, seed=3)
    found = np.array([data.labels(i)[0] for i in drawn])
    assert len(set(drawn.tolist())) == 21
    assert np.bincount(found).tolist() == [10, 1, 10]


def test_draws_of_one_seed_are_nested_and_those_of_others_differ():
    data = Several(*[[i % 3] for i in range(60)])
    large = data.draw([0, 1], 16, seed=0)
    assert data.draw([0, 1], 4, seed=0).tolist() == large[:4].tolist()
    assert data.draw([0, 1], 16, seed=1).tolist() != large.tolist()
    assert {data.truth[i][0] for i in large} == {0, 1}


def test_draw_of_more_than_there_is_gives_all():
    data = Several([0, 1], [1], [0], [2])
    assert sorted(data.draw([0, 1], 100, seed=0).tolist()) == [0, 1, 2]


def test_objects_of_some_classes():
    objects = make_objects([0, 2, 1, 2], x=np.arange(8).reshape(4, 2))
    chosen = objects.of([2])
    assert len(chosen) == 2
    assert chosen.images.tolist() == [1, 3]
    assert chosen.features['x'].tolist() == [[2, 3], [6, 7]]


def test_passes_hold_every_image_once():
    batches = _passes(np.arange(10), 4, seed=0)
    seen = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert len(next(_passes(np.arange(3), 16, seed=0))) == 3


def test_relearning_trains_a_copy_and_leaves_statistics():
    data, audited = FlatImages(8, seed=0), original()
    audited.model.norm.running_mean.fill_(0.25)
    before = {k: v.clone() for k, v in audited.model.state_dict().items()}
    steps = []
    for step, student in audited.relearn(data, range(8), [0, 2], (0, 2, 5), 0.1, 4, seed=0):
        steps.append(step)
        assert not student.model.training
        assert torch.equal(student.model.body, before['body']) == (step == 0)
        assert torch.equal(student.model.norm.running_mean, before['norm.running_mean'])
    assert steps == [0, 2, 5]
    assert all(torch.equal(v, before[k]) for k, v in audited.model.state_dict().items())


def test_relearning_shows_the_same_images_in_the_same_order():
    data = FlatImages(8, seed=0)
    seen = {}
    for name in ('one', 'other'):

        class Spy(FlatModel):
            def loss(self, data, images, labels, name=name):
                seen.setdefault(name, []).append(list(images))
                return super().loss(data, images, labels)

        audited = Spy([1.0, 1.0] if name == 'one' else [-3.0, 2.0])
        for _ in audited.relearn(data, range(12), [0, 1, 2, 3], (6,), 0.1, 5, seed=7):
            pass
    assert seen['one'] == seen['other']
    assert len(seen['one']) == 6


def test_a_step_that_the_memory_does_not_hold_names_the_setting():
    class Large(FlatModel):
        def loss(self, data, images, labels):
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')

    steps = Large([1.0, 1.0]).relearn(FlatImages(8, 0), range(32), [0], (0, 1), 0.1, 16, seed=0)
    assert next(steps)[0] == 0
    with pytest.raises(ForgettingError, match='on 16 images .* relearning_batch=4') as raised:
        next(steps)
    assert len(str(raised.value).splitlines()) == 1


def test_global_random_state_is_left_alone():
    data = FlatImages(4, seed=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for _ in original().relearn(data, range(4), [0], (2,), 0.1, 4, seed=0):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_untrained_model_is_drawn_from_its_seed():
    from mmgslora.families.classifier.audited import AuditedClassifier

    config = dict(type='ForAuditTest')
    if 'ForAuditTest' not in MODELS:

        @MODELS.register_module(name='ForAuditTest')
        class _Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.rand(5))

            def init_weights(self) -> None:
                pass

    torch.manual_seed(9)
    audited = AuditedClassifier(MODELS.build(config), ('a',), config=config)
    weights = [audited.untrained(seed).model.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], audited.model.weight)


def test_new_rows_replace_those_of_the_classes_alone():
    audited = original()
    before = [p.detach().clone() for p in (audited.model.head, audited.model.bias)]
    audited.new_bias = -3.0
    other = audited.with_new_rows([0, 2], seed=1)
    assert torch.equal(audited.model.head, before[0])  # a copy
    head, bias = other.model.head.detach(), other.model.bias.detach()
    assert torch.equal(head[[1, 3]], before[0][[1, 3]])
    assert bias.tolist() == [-3.0, before[1][1], -3.0, before[1][3]]
    assert head[[0, 2]].any() and head[[0, 2]].abs().max() < 0.1
    again = audited.with_new_rows([0, 2], seed=1).model.head
    assert torch.equal(again, head)
    assert not torch.equal(audited.with_new_rows([0, 2], seed=2).model.head, head)


def test_without_rows_the_classes_are_never_named_and_the_inside_is_the_same():
    data, audited = FlatImages(5, seed=0), original()
    before = {name: value.clone() for name, value in audited.model.state_dict().items()}
    other = without_rows(audited, [0, 2])
    assert other.objects(data).scores[:, [0, 2]].max() == 0
    assert other.evaluate(data) == {'a': 0, 'b': 100, 'c': 0, 'd': 100}
    after = audited.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert same_inside(audited, other) and not same_inside(audited, oracle())
