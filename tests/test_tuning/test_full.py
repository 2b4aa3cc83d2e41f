"""Full: what is trained, what a teacher is, and files."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter
from mmgslora.tuning import build_tuner


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()


def tuned(plain, **settings):
    tuner = build_tuner(dict(type='Full', **settings))
    tuner.attach(plain, ())
    return tuner


def test_what_trains():
    plain = model()
    plain[2].requires_grad_(False)  # as a detector freezes stages of its backbone
    tuner = tuned(plain)
    assert [n for n, p in plain.named_parameters() if p.requires_grad] == [
        '0.weight', '0.bias', '1.weight', '1.bias'
    ]  # fmt: skip
    assert tuner.learns(plain[1]) and not tuner.learns(plain[2])
    assert not tuner.has_groups and not tuner.owns('0.weight')
    part = model()
    tuned(part, target=r'0\..*')
    assert [n for n, p in part.named_parameters() if p.requires_grad] == ['0.weight', '0.bias']


@pytest.mark.parametrize(
    ('target', 'words'),
    [('9.*', "'9.*' matches no parameter of this Sequential"), ('(', 'no valid|not a valid')],
)
def test_nothing_to_train(target, words):
    with pytest.raises(ForgettingError, match=words):
        tuned(model(), target=target)


def test_groups_are_refused():
    with pytest.raises(ForgettingError, match="Full has no groups.*sparsity.mode='none'"):
        tuned(model()).groups('block')


def test_teachers_are_what_the_model_was():
    plain = model()
    tuner = tuned(plain)
    x, answers = torch.ones(1, 2), []
    for first in (True, False):
        tuner.begin_task(first=first, teachers=['task_start', 'original'])
        answers.append(plain(x))
        with torch.no_grad():
            plain[0].weight.add_(1)
        with tuner.teacher('task_start') as teacher:
            torch.testing.assert_close(teacher(x), answers[-1])
            assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        with tuner.teacher('original') as teacher:
            torch.testing.assert_close(teacher(x), answers[0])
    again = tuned(model())
    again.load_state_dict(tuner.state_dict())
    with again.teacher('original') as teacher:
        torch.testing.assert_close(teacher(x), answers[0])


def test_the_file_holds_what_changed_and_rebuilds_the_model(tmp_path):
    plain, start = model(), model()
    tuner = tuned(plain)
    tuner.begin_task()
    with torch.no_grad():
        plain[2].bias.add_(1)
    tuner.save(tmp_path / 'task_01', dict(note=1))
    assert (tmp_path / 'task_01' / 'changed.safetensors').stat().st_size < 200
    assert apply_adapter(start, tmp_path / 'task_01')['note'] == 1
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), plain.parameters()))
    with pytest.raises(ForgettingError, match="of '2.bias', which the model lacks"):
        apply_adapter(nn.Sequential(nn.Linear(2, 3)), tmp_path / 'task_01')


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='asks for a GPU')
def test_the_start_is_on_the_cpu_after_a_resume_on_a_gpu():
    """There :meth:`save` compares with it, as in a run that was never killed."""
    tuner = tuned(model())
    with FakeTensorMode():  # says where a tensor would be, on machines without a GPU as well
        start = {'0.bias': torch.zeros(3, device='cuda')}
        tuner.load_state_dict(dict(start=start))
        assert start['0.bias'].is_cuda
        assert [x.device.type for x in tuner.state_dict()['start'].values()] == ['cpu']


def test_gradients_and_numbers_are_checked():
    plain = model()
    tuner = tuned(plain)
    with pytest.raises(ForgettingError, match="the first of them '0.weight'"):
        tuner.check_gradients()
    plain(torch.ones(1, 2)).sum().backward()
    tuner.check_gradients()
    plain[0].bias.data[0] = float('nan')
    with pytest.raises(ForgettingError, match="'0.bias' holds NaN"):
        tuner.end_task()
