"""Every DETR-like of MMDetection, from its shipped config with nothing but sizes changed."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmdet.models import SwinTransformer
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmgslora.datasets import SHAPES, Protocol
from mmgslora.errors import ForgettingError
from mmgslora.families.detector import ForgettingDetector
from mmgslora.lora import (
    adapters_disabled,
    check_live_adapters,
    discover_groups,
    lora_layers,
    merge_adapters,
)

ZOO = dict(
    deformable='deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    refine='deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    two_stage='deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    detr='detr/detr_r50_8xb2-150e_coco.py',
    conditional='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    dab='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    dino='dino/dino-4scale_r50_8xb2-12e_coco.py',
    dino_improved='dino/dino-4scale_r50_improved_8xb2-12e_coco.py',
    dino_swin='dino/dino-5scale_swin-l_8xb2-12e_coco.py',
    ddq='ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
)
LAYERS = 2
SIZE = 96  # gives 193 encoder tokens, as half of it with Swin; two-stage models need one per query
# The width of 256 stays: Conditional DETR, DAB-DETR and the two-stage queries compute with it.
SIZES = dict(
    feedforward_channels=64,
    num_layers=LAYERS,
    num_queries=20,
    num_dn_queries=10,
    max_per_img=20,
    num_classes=len(SHAPES),
)
OURS = dict(type='GuidedGSLoRA')
WITH_PROTOTYPES = dict(type='GSLoRAPlusPlus', feature_pull_weight=0.5, dropout=False)
# The authors' method with the forget view's terms as they are, but for a bound to subtract.
PLAIN_TERMS = dict(type='GSLoRA', bound=100.0, beta=1.0, dropout=False)


def shrink(node):
    """Set every size named above, wherever it stands, and leave pretrained weights out."""
    if isinstance(node, (list, tuple)):
        for child in node:
            shrink(child)
    elif isinstance(node, dict):
        node.pop('init_cfg', None)
        for key, value in node.items():
            if key in SIZES:
                node[key] = SIZES[key]
            else:
                shrink(value)


@pytest.fixture(scope='session')
def shrunk():
    """Configs by name; every user takes a copy."""

    def load(name):
        model = get_config(f'mmdet::{ZOO[name]}').model
        shrink(model)
        backbone = model.backbone
        if backbone.type == 'ResNet':
            backbone.base_channels = 8
            widths = [32 * 2**i for i in backbone.out_indices]
        else:
            backbone.update(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4])
            backbone.update(window_size=4)
            widths = [8 * 2**i for i in backbone.out_indices]
        model.neck.in_channels = widths
        return model

    configs = {}

    def config(name):
        if name not in configs:
            configs[name] = load(name)
        return copy.deepcopy(configs[name])

    return config


@pytest.fixture(scope='session')
def weights(shrunk):
    """Random but fixed weights of the plain detectors by name."""
    states = {}

    def state(name):
        if name not in states:
            torch.manual_seed(1)
            plain = MODELS.build(shrunk(name))
            plain.init_weights()
            for parameter in plain.parameters():  # away from branches initialised to zero
                parameter.data += 0.03 * torch.randn_like(parameter)
            states[name] = plain.state_dict()
        return states[name]

    return state


@pytest.fixture
def zoo(shrunk, weights):
    def build(name, **options):
        """The plain detector with random weights, and a wrapped one that has loaded them."""
        Protocol(SHAPES, [['circle', 'square']]).partition(1).publish()
        plain = MODELS.build(shrunk(name))
        plain.load_state_dict(weights(name))
        method = options.pop('method', OURS)
        model = ForgettingDetector(shrunk(name), method, **options)
        model.load_state_dict(weights(name))
        return plain.eval(), model

    return build


def batch(model, sides=('forget', 'retain', 'forget', 'retain')):
    torch.manual_seed(3)
    plain = getattr(model, 'plain_model', model)
    size = SIZE // 2 if isinstance(plain.backbone, SwinTransformer) else SIZE
    shapes = [[3, size, size], [3, size - 16, size]] * (len(sides) // 2)
    data = demo_mm_inputs(len(sides), shapes, num_items=[2] * len(sides))
    for side, sample in zip(sides, data['data_samples']):
        sample.set_metainfo(dict(view=side))
        sample.gt_instances.labels = torch.tensor([0, 1] if side == 'forget' else [4, 7])
    return data


def prepared(model):
    return model.data_preprocessor(batch(model), True)


@torch.no_grad()
def detect(model):
    model.eval()
    data = prepared(model)
    return [s.pred_instances for s in model(**data, mode='predict')]


def assert_same_detections(ours, theirs):
    """Each has its partner; scores that are equal but for rounding come in any order."""
    for a, b in zip(ours, theirs):
        assert len(a) == len(b) > 0
        assert (a.scores - b.scores).abs().max() < 1e-4
        same = (
            ((a.scores[:, None] - b.scores).abs() < 1e-4)
            & (a.labels[:, None] == b.labels)
            & ((a.bboxes[:, None] - b.bboxes).abs().amax(-1) < 1e-2)
        )
        # Which of the last ones is listed may itself be rounding.
        for found, partners in ((a, same.any(1)), (b, same.any(0))):
            assert partners[found.scores > found.scores.min() + 1e-4].all()


def forget(model, steps=3):
    """A few steps as a runner makes them; returns the losses of each."""
    model.train()
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-2)
    optimizer.register_step_pre_hook(lambda *_: check_live_adapters(model))
    wrapper = OptimWrapper(optimizer)
    return [model.train_step(batch(model), wrapper) for _ in range(steps)]


def disturb(model):
    torch.manual_seed(4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


@pytest.mark.parametrize('method', [OURS, dict(type='GSLoRA')], ids=['ours', 'paper'])
@pytest.mark.parametrize('name', ZOO)
def test_forget_merge_export_and_load_plain(zoo, shrunk, name, method):
    original, model = zoo(name, method=method)
    assert_same_detections(detect(model), detect(original))
    assert len(discover_groups(model)) == 2 * LAYERS  # one for each encoder and decoder layer
    before = {k: v.clone() for k, v in model.state_dict().items()}

    losses = forget(model)
    assert all(torch.isfinite(value).all() for step in losses for value in step.values())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if 'lora_' in k}  # no batch-norm statistics either

    trained = detect(model)
    merge_adapters(model.plain_model)
    assert_same_detections(detect(model), trained)
    state = {k: v for k, v in model.plain_model.state_dict().items() if 'lora_' not in k}
    plain = MODELS.build(shrunk(name))
    plain.load_state_dict(state)
    assert_same_detections(detect(plain), trained)
    assert (trained[0].scores - detect(original)[0].scores).abs().max() > 2e-4


@pytest.mark.parametrize('name', ZOO)
def test_every_query_is_what_the_detections_are_chosen_from(zoo, name):
    original, model = zoo(name)
    listed = detect(original)
    model.eval()
    data = prepared(model)
    for sample in data['data_samples']:  # an image that was made smaller for the model
        sample.set_metainfo(dict(scale_factor=(0.5, 0.8)))
    with torch.no_grad():
        samples = model(**data, mode='predict')
    head = original.bbox_head
    for sample, detections in zip(samples, listed):
        every = sample.every_query
        assert every.labels == [0, 1]  # circle and square must be gone, by the partition
        assert every.bboxes.shape == (len(every), 4) and every.scores.shape == (len(every), 2)
        assert len(every) <= 20 and (len(every) == 20 or name == 'ddq')
        height, width = sample.img_shape
        assert (every.bboxes[:, 2::2] <= width / 0.5 + 1e-3).all()
        for detection in sample.pred_instances:
            label = int(detection.labels)
            if label > 1:
                continue
            same = (every.bboxes == detection.bboxes).all(-1)
            assert (every.scores[same, label] == detection.scores).any()
        if head.loss_cls.use_sigmoid:
            # The slots go to the best of all classes: what ranks above the last one is listed.
            last = detections.scores[-1]
            above = int((every.scores > last + 1e-6).sum())
            assert above == int((detections.labels < 2)[detections.scores > last + 1e-6].sum())


@pytest.mark.parametrize('name', ZOO)
def test_prototypes_and_rows(zoo, name):
    """Prototypes train every detector, and a sealed class is never detected again."""
    original, model = zoo(name, method=WITH_PROTOTYPES)
    assert model.classifier_weight.shape[0] == len(SHAPES)
    found = detect(original)
    gone = [int(found[0].labels[0]), 1]  # what it is surest of, and another class
    model.method.parts[1].values = model.classifier_weight.detach().clone()
    losses = forget(model)
    assert 'forget_loss_prototype' in losses[0] and 'retain_loss_prototype' in losses[0]
    assert all(torch.isfinite(value).all() for step in losses for value in step.values())
    merge_adapters(model.plain_model)
    with model.sealed(gone):
        for image in detect(model):
            assert not image.scores[torch.isin(image.labels, torch.tensor(gone))].any()
            assert image.scores.any()


def assert_terms_are_the_heads_own(plain, model):
    """Those of the last decoder layer, on each view alone, in MMDetection's own training mode.

    With its denoising and dense queries, then, which must not reach the others.
    """
    data = prepared(model)
    losses = model.train()(**data, mode='loss')
    without_dropout(plain).train()
    for side in ('retain', 'forget'):
        rows = [i for i, s in enumerate(data['data_samples']) if s.metainfo['view'] == side]
        with torch.no_grad():
            theirs = plain.loss(data['inputs'][rows], [data['data_samples'][i] for i in rows])
        for term in ('loss_cls', 'loss_bbox', 'loss_iou'):
            ours = losses[f'{side}_{term}'].item()
            if side == 'forget' and term == 'loss_cls':
                ours = PLAIN_TERMS['bound'] - ours  # undo the bounded ascent
            assert ours == pytest.approx(theirs[term].item(), rel=1e-4)


@pytest.mark.parametrize('name', ZOO)
def test_view_terms_equal_the_heads_own_losses(zoo, name):
    assert_terms_are_the_heads_own(*zoo(name, method=PLAIN_TERMS))


def test_queries_dropped_as_duplicates_are_not_matched(zoo, monkeypatch):
    plain, model = zoo('ddq', method=PLAIN_TERMS)
    for detector in (plain, model.detector):
        # Boxes that nearly fill the image overlap.
        detector.bbox_head.reg_branches[0][-1].bias.data[2:] += 4
        detector.dqs_cfg['iou_threshold'] = 0.3
    candidates = []
    inner = type(plain.bbox_head).get_targets

    def get_targets(self, logits, *args, **kwargs):
        if self is model.detector.bbox_head:
            candidates.extend(len(x) for x in logits)
        return inner(self, logits, *args, **kwargs)

    monkeypatch.setattr(type(plain.bbox_head), 'get_targets', get_targets)
    assert_terms_are_the_heads_own(plain, model)
    assert len(candidates) == 4
    assert min(candidates) < SIZES['num_queries']


def test_duplicates_are_dropped_where_nothing_learns(zoo):
    """As before a task, when prototypes are made: the same queries as in a pass of the batch."""
    _, model = zoo('ddq')
    head = model.detector.bbox_head
    head.reg_branches[0][-1].bias.data[2:] += 4  # boxes that nearly fill the image overlap
    model.detector.dqs_cfg['iou_threshold'] = 0.3
    model.eval()
    with torch.no_grad():
        live = model.views(**prepared(model))
        with model.tune.at_start():
            fixed = [model.views(**prepared(model)) for _ in range(2)]
    masks = model._kept_queries(4)
    assert masks.shape == (4, SIZES['num_queries']) and not masks.all()
    for views in fixed:
        assert all(views[side].matched.equal(live[side].matched) for side in live)


@pytest.mark.parametrize('name', ZOO)
def test_views_hold_what_the_classifier_reads(zoo, name):
    _, model = zoo(name)
    seen = {}
    model.watchers.append(lambda views, context: seen.update(views))
    model.train()(**prepared(model), mode='loss')
    head = model.detector.bbox_head
    classify = head.fc_cls if hasattr(head, 'fc_cls') else head.cls_branches[LAYERS - 1]
    for side, labels in (('forget', [0, 0, 1, 1]), ('retain', [4, 4, 7, 7])):
        view = seen[side]
        assert sorted(view.labels.tolist()) == labels
        now, teacher = view.now, view.teachers['original']
        assert torch.allclose(classify(now.embeddings), now.logits, atol=1e-5)
        background = not model.detector.bbox_head.loss_cls.use_sigmoid
        assert now.log_probs.shape == (40, len(SHAPES) + background)
        assert teacher.class_log_probs.shape == (40, len(SHAPES))
        assert (now.log_probs <= 0).all()
        assert torch.allclose(now.class_log_probs, teacher.class_log_probs, atol=1e-5)
        drift = now.divergence(teacher, without=model.context.task.forget)
        assert drift.item() == pytest.approx(0, abs=1e-4)
        assert len(view.matched) == 4 and view.matched.max() < 40


@pytest.mark.parametrize('name', ['two_stage', 'dino', 'ddq', 'detr'])
def test_teacher_answers_for_the_same_queries(zoo, name, monkeypatch):
    """Adapters in the encoder change which queries a two-stage model selects."""
    _, model = zoo(name)
    disturb(model)
    calls = []
    inner = type(model.detector).forward_decoder

    def forward_decoder(self, **inputs):
        calls.append(inputs)
        return inner(self, **inputs)

    monkeypatch.setattr(type(model.detector), 'forward_decoder', forward_decoder)
    model.train()(**prepared(model), mode='loss')
    ours, teachers = calls[0], calls[-1]
    if name == 'detr':  # whose teacher comes first, image by image
        teachers, ours = calls[-2:]
    rows = slice(-len(teachers['query']), None)
    assert not torch.allclose(ours['memory'][rows], teachers['memory'], atol=1e-2)
    assert torch.equal(ours['query'][rows], teachers['query'])
    if 'reference_points' in ours:
        assert torch.equal(ours['reference_points'][rows], teachers['reference_points'])
    detect(model)
    assert 'forward_decoder' not in vars(model.detector)


@pytest.mark.parametrize('name', ['two_stage', 'dino', 'ddq'])
def test_the_trunk_of_a_two_stage_detector_is_run_once_per_image(zoo, name):
    """Its teacher, asked for the student's queries, gives of itself trunk and encoder alone."""
    _, model = zoo(name)
    images = []
    model.detector.backbone.register_forward_pre_hook(lambda m, a: images.append(len(a[0])))
    model.train()
    for _ in range(3):
        model(**prepared(model), mode='loss')
    assert images == [1] * 4
    assert 'trunk' in {key[0][0] for key in model._encoding.cache._kept}
    for group in model.tune.groups('block'):
        if group.name.startswith('encoder'):
            group.hold()
    model(**prepared(model), mode='loss')
    assert images == [1] * 4
    assert 'trunk' not in {key[0][0] for key in model._encoding.cache._kept}  # nobody reads it


def test_no_object_is_not_a_class_of_softmax_heads(zoo):
    _, model = zoo('detr')
    assert model.detector.bbox_head.fc_cls.out_features == len(SHAPES) + 1
    model.method.beta = 5.0  # an untrained teacher is sure of nothing, which weighs little
    losses = forget(model, steps=20)
    # The forgotten classes lose probability: the hinge on them falls.
    assert losses[-1]['forget_loss_cls'] < 0.9 * losses[0]['forget_loss_cls']


def test_groups_in_the_swin_backbone_too(zoo):
    original, model = zoo('dino_swin', tune=dict(exclude=('neck',)))
    groups = [group.name for group in discover_groups(model)]
    inside = [name for name in groups if name.startswith('detector.backbone')]
    assert (len(groups), len(inside)) == (9, 5)  # depths 1, 1, 2, 1

    forget(model)  # checks that every adapter gets a gradient
    assert not any(m.training for m in model.detector.backbone.modules())
    trained = detect(model)
    merge_adapters(model.plain_model)
    state = {k: v for k, v in model.plain_model.state_dict().items() if 'lora_' not in k}
    original.load_state_dict(state)
    assert_same_detections(detect(original), trained)


def test_teacher_of_a_learning_trunk_sees_its_own_features(zoo, monkeypatch):
    plain, model = zoo('dino_swin', tune=dict(exclude=('neck',)))
    disturb(model)
    data = prepared(model)
    features = []
    inner = model.detector.pre_transformer
    seen = lambda f, s: features.append(f[0]) or inner(f, s)  # noqa: E731
    monkeypatch.setattr(model.detector, 'pre_transformer', seen)
    model.train()(**data, mode='loss')
    ours, teachers = features[0], features[1:-1]  # images of one shape after the others'; joined
    with torch.no_grad():
        expected = plain.extract_feat(data['inputs'])[0]
    assert len(teachers) == len(expected)
    for one in expected:
        assert sum(torch.allclose(x[0], one, atol=1e-5) for x in teachers) == 1
    assert not torch.allclose(ours, expected, atol=1e-2)
    with torch.no_grad(), adapters_disabled(model):
        assert torch.allclose(model.detector.extract_feat(data['inputs'])[0], expected, atol=1e-5)


def test_a_model_without_a_transformer_block_is_refused(shrunk):
    everything = dict(exclude=('backbone', 'neck', 'encoder', 'decoder'))
    with pytest.raises(ForgettingError, match='No transformer feed-forward block.*DETR outside'):
        ForgettingDetector(shrunk('detr'), dict(type='GSLoRA'), tune=everything)


def test_blocks_in_the_backbone_do_not_make_a_cnn_detector_a_detr(shrunk):
    detector = dict(
        type='RetinaNet',
        backbone=shrunk('dino_swin').backbone,
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1
        ),
    )
    with pytest.raises(ForgettingError, match='RetinaNet has no DETR-like bbox_head'):
        ForgettingDetector(detector, dict(type='GSLoRA'), tune=dict(exclude=('neck',)))


@pytest.mark.parametrize('name', ZOO)
def test_the_coco_config_takes_any_of_them(name, repo_root, tmp_path):
    """As docs/models.md says: another base and another checkpoint, nothing more."""
    text = (repo_root / 'configs/gslora_coco_forget.py').read_text()
    text = text.replace(ZOO['deformable'], ZOO[name])
    text = text.replace("'./_base_", f"'{repo_root.as_posix()}/configs/_base_")
    file = tmp_path / 'config.py'
    file.write_text(text + "load_from = 'mine.pth'\n")
    cfg = Config.fromfile(file)
    assert cfg.model.type == 'ForgettingDetector'
    assert cfg.model.detector == get_config(f'mmdet::{ZOO[name]}').model | dict(_scope_='mmdet')
    assert cfg.train_dataloader.dataset.dataset.type == 'CocoDataset'
    assert cfg.optim_wrapper.optimizer.lr == 2e-2


def published(state, names):
    """A checkpoint as MMDetection publishes it: what was a buffer then, and its own meta."""
    preprocessor = {
        f'data_preprocessor.{key}': torch.rand(3, 1, 1) for key in ('mean', 'std')
    }  # MMDetection issue 11027
    meta = dict(
        cfg='model = dict()',
        dataset_meta=dict(CLASSES=names, PALETTE=[(220, 20, 60)] * len(names)),
        epoch=50,
        experiment_name='detector_coco',
        hook_msgs={},
        iter=184850,
        mmengine_version='0.1.0',
        seed=1041023,
        time='20221029_210934',
    )
    return dict(meta=meta, state_dict={**preprocessor, **state})


@pytest.mark.parametrize('name', ZOO)
def test_published_layout(name, tiny_cfg, shrunk, weights, tmp_path):
    """Through MMEngine's own loading, the class check included."""
    cfg = copy.deepcopy(tiny_cfg)
    cfg.model.detector = shrunk(name)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), tmp_path.name
    cfg.load_from = str(tmp_path / 'published.pth')
    runner = Runner.from_cfg(cfg)
    state, needed = weights(name), 'decoder.layers.1.ffn.layers.1.weight'
    for parameter in runner.model.parameters():
        parameter.data.zero_()

    def load(checkpoint):
        torch.save(checkpoint, cfg.load_from)
        runner.load_checkpoint(cfg.load_from)

    with pytest.raises(ForgettingError, match="has 'heart' as class 0, the data set 'circle'"):
        load(published(state, SHAPES[::-1]))
    with pytest.raises(ForgettingError, match=f'no {needed!r}, which the configured'):
        load(published({k: v for k, v in state.items() if k != needed}, SHAPES))
    foreign = {'decoder.layers.2.norms.0.weight': torch.ones(256)}
    with pytest.raises(ForgettingError, match=f'has {next(iter(foreign))!r}, which .* lacks'):
        load(published(state | foreign, SHAPES))
    assert not any(parameter.any() for parameter in runner.model.parameters())

    load(published(state, SHAPES))
    loaded = runner.model.plain_model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
    assert all('lora_' in k for k in loaded.keys() - state.keys())
