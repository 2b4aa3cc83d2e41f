"""LoRA as a tuner: which layers, who the teachers are, which keys are its own."""

import pytest
import torch
from torch import nn

from mmgslora.errors import ForgettingError
from mmgslora.lora import apply_adapter, lora_layers
from mmgslora.tuning import build_tuner


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.down(self.up(x).relu())


def model():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


def tuned(plain, **settings):
    tuner = build_tuner(dict(type='LoRA', **settings))
    tuner.attach(plain, ('backbone',))
    return tuner


def wake(plain):
    torch.manual_seed(1)
    for layer in lora_layers(plain).values():
        nn.init.normal_(layer.lora_B)


@pytest.mark.parametrize(
    ('layers', 'names'),
    [('ffn', ['up', 'down']), ('attention', ['attn']), ('all', ['attn', 'up', 'down'])],
)
def test_layers(layers, names):
    plain = model()
    tuner = tuned(plain, layers=layers, rank=2)
    assert list(lora_layers(plain)) == [f'{i}.{name}' for i in (0, 1) for name in names]
    assert [g.name for g in tuner.groups('block')][0].startswith('0')
    assert len(tuner.groups('block')) == 2  # attention and feed-forward network go together
    assert len(tuner.groups('block')[0].B) == len(names)


def test_settings_name_what_carries_adapters():
    tuner = tuned(model(), rank=2)
    targets = ['0.up', '0.down', '1.up', '1.down']
    assert tuner.settings() == dict(rank=2, lora_alpha=1.0, init='kaiming', targets=targets)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(rnak=4), "tune LoRA has no setting 'rnak' .did you mean 'rank'"),
        (dict(rank=0), 'rank is 0; it can be a whole number from 1 up'),
        (dict(exclude=['bakbone']), "exclude has 'bakbone'.*its parts are 0, 1"),
        (dict(layers='ffns'), "layers is 'ffns'; it can be ffn, attention or all"),
        (dict(type='Lora'), "tune.type is 'Lora' .did you mean 'LoRA'.*Full"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ForgettingError, match=words):
        build_tuner({'type': 'LoRA', **settings}).attach(model(), ())


def test_teachers():
    plain, x = model(), torch.randn(1, 3, 4)
    tuner = tuned(plain, layers='all', rank=2)
    start = plain(x)
    for first in (True, False):
        tuner.begin_task(first=first, teachers=['task_start', 'original'])
        before = plain(x)
        wake(plain)
        assert not torch.allclose(plain(x), before, atol=1e-3)
        with tuner.teacher('task_start') as teacher:
            assert teacher is plain and torch.equal(teacher(x), before)
        with tuner.teacher('original') as teacher:
            torch.testing.assert_close(teacher(x), start)
        now = plain(x)
        tuner.end_task()
        torch.testing.assert_close(plain(x), now, rtol=1e-4, atol=1e-5)


def test_its_own_keys():
    plain = model()
    keys = set(plain.state_dict())
    tuner = tuned(plain, layers='all', rank=2)
    assert set(tuner.plain_state_dict()) == keys
    assert not tuner.owns('head.lora_Another') and tuner.owns('0.attn.lora_A')


def test_saved_and_restored(tmp_path):
    plain = model()
    tuner = tuned(plain, layers='all', rank=2)
    wake(plain)
    tuner.save(tmp_path / 'task_01', dict(note=1))
    tuner.end_task()
    other = model()
    assert apply_adapter(other, tmp_path / 'task_01')['note'] == 1
    for name, value in tuner.plain_state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_missing_frozen_part_is_no_mistake():
    tuned(model(), rank=2)  # there is no backbone
    with pytest.raises(ForgettingError, match='rank 9 is not possible'):
        tuned(model(), rank=9)
