"""What does not learn is computed once per image, and gives what it gave without that."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmgslora.datasets import SHAPES, Protocol
from mmgslora.engine import MethodHook
from mmgslora.families.detector import ForgettingDetector
from mmgslora.lora import lora_layers, merge_adapters

from .test_model import OURS, batch, disturb


@pytest.fixture
def build(tiny_cfg, tiny_checkpoint):
    def build(**settings):
        torch.manual_seed(0)
        method = dict(OURS, **settings.pop('method', {}))
        model = ForgettingDetector(tiny_cfg.model.detector, method, **settings)
        model.load_state_dict(torch.load(tiny_checkpoint)['state_dict'])
        Protocol(SHAPES, [['circle', 'square']]).partition(1).publish()
        return model.train()

    return build


def tried(model):
    """It has seen that images may go together: of other images, each pass twice."""
    other = batch(model)
    other['inputs'] = other['inputs'].flip(-2)
    model(**other, mode='loss')
    return model


def counted(model):
    """How many images backbone and encoder are given from now on."""
    counts = dict(backbone=0, encoder=0)

    def count(name, images):
        counts[name] += images

    detector = model.detector
    detector.backbone.register_forward_pre_hook(lambda m, a: count('backbone', len(a[0])))
    detector.encoder.layers[0].register_forward_pre_hook(
        lambda m, a, k: count('encoder', len(k['query'])), with_kwargs=True
    )
    return counts


def passes_of(model):
    """How many images each pass of the backbone has from now on."""
    sizes = []
    model.detector.backbone.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    return sizes


def test_a_resumed_run_goes_on_as_its_first_batch_had_it(build):
    """Images of several sizes came first before the kill, images of one size after it."""
    whole, resumed = build(), build()
    disturb(whole)
    disturb(resumed)
    mixed = batch(whole)
    for sample in mixed['data_samples'][:2]:
        sample.set_metainfo(dict(img_shape=(48, 64)))
    whole(**mixed, mode='loss')
    saved = {}
    for moment, model in (('before_save', whole), ('after_load', resumed)):
        runner = SimpleNamespace(train_loop=SimpleNamespace(model=model))
        getattr(MethodHook(), f'{moment}_checkpoint')(runner, saved)
    found = []
    for model in (whole, resumed):
        sizes = passes_of(model)
        data = batch(model)
        data['inputs'] = data['inputs'].flip(-1)
        found.append((sizes, model(**data, mode='loss')))
    (sizes, losses), (again, same) = found
    assert sizes == again == [1, 1, 1, 1]
    assert all(torch.equal(losses[name], same[name]) for name in losses)


def hold_encoder(model):
    hold(model, 'encoder')


def hold(model, *parts):
    for group in model.tune.groups('block'):
        if group.name.startswith(parts):
            group.hold()


def test_once_per_image_and_only_for_what_does_not_learn(build):
    model = tried(build())
    counts = counted(model)
    for _ in range(3):
        model(**batch(model), mode='loss')
    # The encoder learns: every step for the student, once for the teacher.
    assert counts == dict(backbone=4, encoder=3 * 4 + 4)
    hold_encoder(model)
    for _ in range(3):
        model(**batch(model), mode='loss')
    assert counts == dict(backbone=4, encoder=3 * 4 + 4)  # the student reads the teacher's
    other = batch(model)
    other['inputs'] = other['inputs'].flip(-1)
    model(**other, mode='loss')
    assert counts == dict(backbone=8, encoder=3 * 4 + 8)


def test_what_follows_the_last_fixed_layer_is_not_run_for_it(build):
    tune = dict(type='Full', target=r'(decoder\.layers\.1|bbox_head)\..*')
    model = build(method=dict(sparsity=dict(mode='none')), tune=tune)
    model.detector.bbox_head.requires_grad_(False)
    other = batch(model)
    model.views(**dict(other, inputs=other['inputs'].flip(-1)))  # images may go together: tried
    runs = []
    for i, layer in enumerate(model.detector.decoder.layers):
        layer.ffn.register_forward_pre_hook(lambda m, a, i=i: runs.append((i, len(a[0]))))
    found = model.views(**batch(model))
    assert runs == [(0, 4), (1, 4)]
    runs.clear()
    again = model.views(**batch(model))
    assert runs == [(1, 4)]
    assert torch.equal(found['forget'].now.logits, again['forget'].now.logits)


@pytest.mark.parametrize('held', [['encoder'], ['encoder', 'decoder.layers.0']])
def test_the_same_without_room_to_keep_anything(build, held):
    """Losses and gradients are bit for bit the same, whatever was seen before in which batch."""
    found = []
    for gb in (0.0, 2.0):
        model = build(cache_gb=gb)
        disturb(model)
        with torch.no_grad():
            for name, layer in lora_layers(model).items():
                if any(f'.{part}.' in name for part in held):
                    layer.lora_B.zero_()
        hold(model, *held)
        data = batch(model)
        if gb:  # another batch of the same images comes first
            order = [2, 1, 0, 3]
            samples = [data['data_samples'][i] for i in order]
            model(data['inputs'][order], samples, mode='loss')
        losses = model(**batch(model), mode='loss')
        sum(losses.values()).backward()
        found.append((losses, [p.grad for p in model.parameters()]))
    (losses, grads), (again, same) = found
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    for a, b in zip(grads, same):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


@pytest.mark.parametrize('held', [['encoder'], ['encoder', 'decoder.layers.0']])
def test_held_at_zero_is_the_block_itself(build, held):
    """Leaving out adapters that are zero changes losses and gradients by rounding alone."""
    model = build()
    last = lora_layers(model.detector.decoder.layers[-1]).values()
    for layer in last:
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    found = []
    for parts in ([], held):
        hold(model, *parts)
        losses = model(**batch(model), mode='loss')
        sum(losses.values()).backward()
        found.append((losses, [layer.lora_B.grad.clone() for layer in last]))
        model.zero_grad()
    (free, grads), (now, same) = found
    for name in free:
        assert now[name].item() == pytest.approx(free[name].item(), rel=1e-4, abs=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(grads, same))


def test_the_last_feed_forward_network_alone(build):
    """What it reads is known: no attention is run any more, of no layer."""
    model = build()
    model(**batch(model), mode='loss')
    hold(model, 'encoder', 'decoder.layers.0')
    for layer in model.detector.decoder.layers:
        layer.cross_attn.value_proj.register_forward_hook(lambda *_: pytest.fail('known already'))
    for _ in range(2):
        losses = model(**batch(model), mode='loss')
    sum(losses.values()).backward()
    grads = [p.grad is not None for n, p in model.named_parameters() if 'lora' in n]
    assert any(grads) and not all(grads)


def test_nothing_stale_after_a_merge(build):
    model = build()
    teacher = model.views(**batch(model), teachers=['task_start'])['retain'].teachers['task_start']
    disturb(model)
    merge_adapters(model)
    merged = model.views(**batch(model), teachers=['task_start'])['retain'].teachers['task_start']
    assert not torch.allclose(teacher.logits, merged.logits, atol=1e-2)


def test_the_original_shares_what_is_still_its_own(build):
    """From the second task on it is another model, of the same trunk, encoder and first layers."""
    model = build()
    detector = model.detector
    model.tune.begin_task(first=True, teachers=['original'])
    hold_encoder(model)
    before = model.views(**batch(model), teachers=['original'])['retain'].teachers['original']
    last = detector.decoder.layers[-1]
    for layer in lora_layers(last).values():
        torch.nn.init.normal_(layer.lora_B)
    model.tune.end_task()
    model.tune.begin_task(teachers=['original'])
    with model.tune.teacher('original') as original:
        assert original is not detector and original.backbone is detector.backbone
    hold_encoder(model)
    counts = counted(model)
    original.encoder.layers[0].register_forward_hook(lambda *_: pytest.fail('known already'))
    after = model.views(**batch(model), teachers=['original', 'task_start'])['retain'].teachers
    assert counts == dict(backbone=0, encoder=0)
    assert torch.equal(after['original'].logits, before.logits)
    assert not torch.allclose(after['task_start'].logits, before.logits, atol=1e-2)


def test_what_nobody_can_ask_for_is_not_kept(build):
    model = build()
    model(**batch(model), mode='loss')
    cache = model._encoding.cache
    stages = {key[0][0] for key in cache._kept}
    layers = len(model.detector.decoder.layers)
    later = {f'decoder.{i}{part}' for i in range(layers) for part in ('', '.attention')} | {'head'}
    assert stages == {'trunk', 'encoder', *later} and len(cache) == 4 * len(stages)
    hold_encoder(model)
    model(**batch(model), mode='loss')
    assert {key[0][0] for key in cache._kept} == {'encoder', *later}
    hold(model, 'decoder.layers.0')  # the last feed-forward network is left
    model(**batch(model), mode='loss')
    assert {key[0][0] for key in cache._kept} == later
    disturb(model)
    merge_adapters(model)
    model(**batch(model), mode='loss')  # of the model before the merge there is nothing
    assert len(cache) == 4 * len({key[0] for key in cache._kept})
    assert len(cache) <= 4 * (2 * layers + 3)
    assert cache.bytes == sum(x.untyped_storage().nbytes() for v in cache._kept.values() for x in v)


def test_dropout_in_the_encoder_is_drawn_anew(build):
    model = build(method=dict(dropout=True))
    hold_encoder(tried(model))
    counts = counted(model)
    for _ in range(2):
        model(**batch(model), mode='loss')
    assert counts['backbone'] == 4 and counts['encoder'] == 2 * 8


def test_a_run_with_and_without(run_cfg):
    """Two tasks, selection and refit: the merged models are bit for bit the same."""
    states = []
    for gb in (0.0, 2.0):
        cfg: Config = copy.deepcopy(run_cfg)
        cfg.model.cache_gb = gb
        cfg.model.method = dict(type='GuidedGSLoRA', sparsity=dict(select=0.5))
        cfg.work_dir, cfg.experiment_name = f'{cfg.work_dir}_{gb}', f'{cfg.experiment_name}_{gb}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        states.append(runner.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_tight_cache_is_never_over_its_bound(build):
    model = build(cache_gb=2e-4)
    for _ in range(2):
        model(**batch(model), mode='loss')
        assert model._encoding.cache.bytes <= 2e5
