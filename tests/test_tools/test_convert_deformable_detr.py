"""The original Deformable DETR, written down small, answers as MMDetection does once converted."""

import importlib.util
import math
import os
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.runner import load_checkpoint
from torch import nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from mmgslora.errors import ForgettingError

TOOL = 'tools/convert_deformable_detr.py'
CONFIG = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
# Every size differs from every other, and no default of either code is among them.
SMALL = SimpleNamespace(dim=64, hidden=48, queries=9, encoders=2, decoders=3, levels=5)
FULL = SimpleNamespace(dim=256, hidden=1024, queries=300, encoders=6, decoders=6, levels=4)
HEADS, POINTS = 8, 4
# COCO's category ids, as its annotation files give them: 80 of 1 to 90.
MISSING_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = [i for i in range(1, 91) if i not in MISSING_IDS]


class DeformableAttention(nn.Module):
    """Attention to a few points of each level; the sum over them is written out here."""

    def __init__(self, size):
        super().__init__()
        points = HEADS * size.levels * POINTS
        self.sampling_offsets = nn.Linear(size.dim, 2 * points)
        self.attention_weights = nn.Linear(size.dim, points)
        self.value_proj = nn.Linear(size.dim, size.dim)
        self.output_proj = nn.Linear(size.dim, size.dim)

    def forward(self, query, reference, source, shapes, padding):
        batch, length, dim = query.shape
        value = self.value_proj(source).masked_fill(padding[..., None], 0)
        levels = value.view(batch, -1, HEADS, dim // HEADS).split([h * w for h, w in shapes], 1)
        offsets = self.sampling_offsets(query).view(batch, length, HEADS, len(shapes), POINTS, 2)
        weights = self.attention_weights(query).view(batch, length, HEADS, -1).softmax(-1)
        weights = weights.view(batch, length, HEADS, len(shapes), POINTS)
        total = 0
        for i, (value, (h, w)) in enumerate(zip(levels, shapes)):
            # In pixels of the level; pixel centres are at halves.
            at = (reference[:, :, None, i, None] * query.new_tensor([w, h])) + offsets[:, :, :, i]
            grid = (2 * at / query.new_tensor([w, h]) - 1).transpose(1, 2).flatten(0, 1)
            image = value.permute(0, 2, 3, 1).reshape(batch * HEADS, -1, h, w)
            sampled = F.grid_sample(image, grid, align_corners=False)
            sampled = sampled.view(batch, HEADS, -1, length, POINTS)
            total = total + torch.einsum('bhcqp,bqhp->bqhc', sampled, weights[:, :, :, i])
        return self.output_proj(total.flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.self_attn = DeformableAttention(size)
        self.norm1, self.norm2 = nn.LayerNorm(size.dim), nn.LayerNorm(size.dim)
        self.linear1 = nn.Linear(size.dim, size.hidden)
        self.linear2 = nn.Linear(size.hidden, size.dim)

    def forward(self, source, position, reference, shapes, padding):
        attended = self.self_attn(source + position, reference, source, shapes, padding)
        source = self.norm1(source + attended)
        return self.norm2(source + self.linear2(self.linear1(source).relu()))


class DecoderLayer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.cross_attn = DeformableAttention(size)
        self.norm1 = nn.LayerNorm(size.dim)
        self.self_attn = nn.MultiheadAttention(size.dim, HEADS)
        self.norm2 = nn.LayerNorm(size.dim)
        self.linear1 = nn.Linear(size.dim, size.hidden)
        self.linear2 = nn.Linear(size.hidden, size.dim)
        self.norm3 = nn.LayerNorm(size.dim)

    def forward(self, target, position, reference, memory, shapes, padding):
        query = (target + position).transpose(0, 1)
        attended = self.self_attn(query, query, target.transpose(0, 1))[0].transpose(0, 1)
        target = self.norm2(target + attended)
        attended = self.cross_attn(target + position, reference, memory, shapes, padding)
        target = self.norm1(target + attended)
        return self.norm3(target + self.linear2(self.linear1(target).relu()))


class Original(nn.Module):
    """The plain model: its names are those of the original's checkpoint."""

    def __init__(self, size):
        super().__init__()
        body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        layers = {f'layer{i}': str(i) for i in (2, 3, 4)}
        self.backbone = nn.ModuleList([nn.Module()])
        self.backbone[0].body = IntermediateLayerGetter(body, layers)
        inputs = [512, 1024, 2048] + [2048] + [size.dim] * (size.levels - 4)
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(n, size.dim, 1) if i < 3 else nn.Conv2d(n, size.dim, 3, 2, 1),
                nn.GroupNorm(32, size.dim),
            )
            for i, n in enumerate(inputs)
        )
        self.transformer = nn.Module()
        for name, layer, count in (
            ('encoder', EncoderLayer, size.encoders),
            ('decoder', DecoderLayer, size.decoders),
        ):
            coder = nn.Module()
            coder.layers = nn.ModuleList(layer(size) for _ in range(count))
            setattr(self.transformer, name, coder)
        self.transformer.level_embed = nn.Parameter(torch.randn(size.levels, size.dim))
        self.transformer.reference_points = nn.Linear(size.dim, 2)
        self.query_embed = nn.Embedding(size.queries, 2 * size.dim)
        classifier, box = nn.Linear(size.dim, 91), nn.Module()
        box.layers = nn.ModuleList(nn.Linear(size.dim, n) for n in (size.dim, size.dim, 4))
        # One head, listed once for each decoder layer.
        self.class_embed = nn.ModuleList([classifier] * size.decoders)
        self.bbox_embed = nn.ModuleList([box] * size.decoders)

    def forward(self, images, mask):
        """Class logits and boxes of every decoder layer; the mask is True on padding."""
        features = list(self.backbone[0].body(images).values())
        sources = [project(x) for project, x in zip(self.input_proj, features)]
        for project in self.input_proj[3:]:
            sources.append(project(features[-1] if len(sources) == 3 else sources[-1]))
        masks = [F.interpolate(mask[None].float(), x.shape[-2:])[0].bool() for x in sources]
        embeds = self.transformer.level_embed
        position = [
            (sine_encoding(m, embeds.shape[1] // 2) + e[:, None, None]).flatten(2).mT
            for m, e in zip(masks, embeds)
        ]
        shapes = [tuple(x.shape[-2:]) for x in sources]
        ratios = torch.stack([valid_ratio(m) for m in masks], 1)
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        memory = torch.cat([x.flatten(2).mT for x in sources], 1)
        position = torch.cat(position, 1)
        reference = torch.cat([centres(s, ratios[:, i]) for i, s in enumerate(shapes)], 1)
        reference = reference[:, :, None] * ratios[:, None]
        for layer in self.transformer.encoder.layers:
            memory = layer(memory, position, reference, shapes, padding)

        queries = self.query_embed.weight.expand(len(images), -1, -1)
        position, target = queries.chunk(2, dim=-1)
        start = self.transformer.reference_points(position).sigmoid()
        reference = start[:, :, None] * ratios[:, None]
        logits, boxes = [], []
        for layer, classify, box in zip(
            self.transformer.decoder.layers, self.class_embed, self.bbox_embed
        ):
            target = layer(target, position, reference, memory, shapes, padding)
            logits.append(classify(target))
            raw = box.layers[2](box.layers[1](box.layers[0](target).relu()).relu())
            clipped = start.clamp(0, 1)
            shift = torch.log(clipped.clamp(min=1e-5) / (1 - clipped).clamp(min=1e-5))
            boxes.append((raw + F.pad(shift, (0, 2))).sigmoid())
        return torch.stack(logits), torch.stack(boxes)


def sine_encoding(mask, features):
    """Sines and cosines of where a pixel's centre is in the image, y before x."""
    parts = []
    for dim in (1, 2):
        # In float32, as both codes have it.
        place = (~mask).cumsum(dim, dtype=torch.float32)
        last = place.narrow(dim, -1, 1)
        place = (place - 0.5) / (last + 1e-6) * (2 * math.pi)
        exponent = torch.arange(features, dtype=torch.float32) // 2 * 2 / features
        angle = place[..., None] / 10000**exponent
        waves = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1)
        parts.append(waves.flatten(3))
    return torch.cat(parts, -1).permute(0, 3, 1, 2)


def valid_ratio(mask):
    """The part of the width and of the height that is image."""
    return torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], -1)


def centres(shape, ratio):
    """Every pixel's centre, relative to the part of the level that is image."""
    h, w = shape
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing='ij')
    extent = ratio[:, None] * ratio.new_tensor([w, h])
    return torch.stack([x, y], -1).view(1, -1, 2) / extent


def scramble(model):
    """Random numbers everywhere, buffers and biases too, of sizes that keep the outputs alive."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith('running_var'):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.dim() == 1 and name.endswith('weight'):
            nn.init.uniform_(value, 0.2, 0.8)
        elif value.dim() > 1 and 'embed.weight' not in name and 'level_embed' not in name:
            nn.init.kaiming_uniform_(value, a=1)
        else:
            nn.init.normal_(value, std=0.5)
    return model


def mmdet_model(size):
    cfg = get_config(CONFIG).model
    cfg.backbone.init_cfg = None
    cfg.neck.bias = True
    if size is not FULL:
        cfg.num_queries, cfg.num_feature_levels = size.queries, size.levels
        cfg.neck.update(out_channels=size.dim, num_outs=size.levels)
        cfg.encoder.num_layers, cfg.decoder.num_layers = size.encoders, size.decoders
        for coder in (cfg.encoder, cfg.decoder):
            for part in coder.layer_cfg.values():
                part.embed_dims = size.dim
            coder.layer_cfg.ffn_cfg.feedforward_channels = size.hidden
        cfg.encoder.layer_cfg.self_attn_cfg.num_levels = size.levels
        cfg.decoder.layer_cfg.cross_attn_cfg.num_levels = size.levels
        cfg.positional_encoding.num_feats = size.dim // 2
        cfg.bbox_head.embed_dims = size.dim
    return MODELS.build(cfg).eval()


@pytest.fixture(scope='module')
def tool(request):
    path = request.config.rootpath / TOOL
    spec = importlib.util.spec_from_file_location('convert_deformable_detr', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def original():
    torch.manual_seed(0)
    return scramble(Original(SMALL)).double().eval()


@pytest.fixture
def weights(original):
    return dict(original.state_dict())


@pytest.fixture(scope='module')
def reading():
    if not hasattr(torch.serialization, 'add_safe_globals'):
        pytest.skip('the original checkpoint needs torch 2.4 to be read')


@pytest.fixture(scope='module')
def converted(tool, original, reading, tmp_path_factory):
    """The file that the tool writes for the original."""
    folder = tmp_path_factory.mktemp('converted')
    checkpoint = dict(model=original.state_dict(), epoch=49, args=Namespace(lr=2e-4))
    torch.save(checkpoint, folder / 'in.pth')
    tool.main([str(folder / 'in.pth'), str(folder / 'new' / 'out.pth')])
    (folder / 'in.pth').unlink()
    assert [path.name for path in (folder / 'new').iterdir()] == ['out.pth']
    return folder / 'new' / 'out.pth'


@pytest.fixture
def refused(tool):
    """The sentence that weights are refused with."""

    def refused(weights):
        with pytest.raises(ForgettingError) as caught:
            tool.convert(weights)
        return str(caught.value)

    return refused


@pytest.mark.parametrize('shapes', [[(96, 128)], [(96, 128), (96, 128)], [(96, 77), (64, 128)]])
@torch.no_grad()
def test_same_outputs(original, converted, shapes):
    model = mmdet_model(SMALL).double()
    load_checkpoint(model, str(converted), map_location='cpu', strict=True)
    images = torch.zeros(len(shapes), 3, 96, 128, dtype=torch.float64)
    mask = torch.ones(len(shapes), 96, 128, dtype=torch.bool)
    for i, (h, w) in enumerate(shapes):
        images[i, :, :h, :w] = torch.randn(3, h, w)
        mask[i, :h, :w] = False
    logits, boxes = original(images, mask)
    samples = [
        DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=(96, 128)))
        for shape in shapes
    ]
    hidden = model.forward_transformer(model.extract_feat(images), samples)
    scores, found = model.bbox_head(**hidden)
    # Outputs that hardly vary would agree whatever was mixed up.
    assert logits.std((0, 2)).mean() > 0.2 and boxes.std((0, 2)).mean() > 0.02
    torch.testing.assert_close(scores, logits[..., CATEGORY_IDS], atol=1e-8, rtol=0)
    torch.testing.assert_close(found, boxes, atol=1e-8, rtol=0)


@torch.no_grad()
def test_neck_needs_its_bias(converted):
    """What the tool says of model.neck.bias: without it the features are others."""
    state_dict = torch.load(converted, weights_only=True)['state_dict']
    biases = [k for k in state_dict if k.startswith('neck.') and k.endswith('.conv.bias')]
    assert len(biases) == SMALL.levels
    neck = mmdet_model(SMALL).neck.double()
    parts = {k[5:]: v for k, v in state_dict.items() if k.startswith('neck.')}
    neck.load_state_dict(parts)
    inputs = [torch.randn(1, n, 4, 4, dtype=torch.float64) for n in (512, 1024, 2048)]
    with_bias = neck(inputs)
    neck.load_state_dict({k: v * (not k.endswith('.conv.bias')) for k, v in parts.items()})
    assert all((a - b).abs().max() > 0.1 for a, b in zip(with_bias, neck(inputs)))


def test_full_size_fills_the_published_config(tool):
    with torch.device('meta'):
        layout = Original(FULL).state_dict()
        wanted = mmdet_model(FULL).state_dict()
    weights = {k: torch.zeros(1, dtype=torch.half).expand(v.shape) for k, v in layout.items()}
    rows = torch.arange(91.0)[:, None].expand(91, FULL.dim)
    weights.update({f'class_embed.{i}.weight': rows for i in range(FULL.decoders)})
    # A counter that only an unfrozen batch normalization has.
    weights['backbone.0.body.bn1.num_batches_tracked'] = torch.tensor(7)
    state_dict = tool.convert(weights)
    assert {k: v.shape for k, v in state_dict.items()} == {k: v.shape for k, v in wanted.items()}
    counters = [v for k, v in state_dict.items() if k.endswith('num_batches_tracked')]
    assert len(counters) == 53 and not any(counters)
    assert state_dict['bbox_head.cls_branches.5.weight'][:, 0].tolist() == CATEGORY_IDS


def test_classes_are_cocos(converted):
    meta = torch.load(converted, weights_only=True)['meta']
    classes = meta['dataset_meta']['classes']
    assert classes == CocoDataset.METAINFO['classes'] and len(classes) == 80
    ids = dict(zip(classes, CATEGORY_IDS))
    assert (ids['person'], ids['stop sign'], ids['toilet'], ids['toothbrush']) == (1, 13, 70, 90)


@pytest.mark.parametrize(
    'name',
    [
        'transformer.level_embed',
        'query_embed.weight',
        'backbone.0.body.layer3.5.bn2.running_var',
        'input_proj.4.0.bias',
        'transformer.decoder.layers.1.norm3.bias',
        'class_embed.2.weight',
    ],
)
def test_missing_weight(weights, refused, name):
    del weights[name]
    assert refused(weights).endswith(f'{name!r} is missing.')


@pytest.mark.parametrize(
    'index, sentence',
    [
        (0, "decoder.layers.0.self_attn.in_proj_weight' is missing"),
        (1, "decoder.layers.1.self_attn.in_proj_weight' is missing"),
        (2, "'class_embed.2.weight' has no place"),
    ],
)
def test_missing_layer(weights, refused, index, sentence):
    gone = f'transformer.decoder.layers.{index}.'
    assert sentence in refused({k: v for k, v in weights.items() if not k.startswith(gone)})


def test_unused_weight(weights, refused):
    weights['mask_head.lay1.weight'] = torch.zeros(1)
    assert refused(weights).startswith("'mask_head.lay1.weight' has no place")


def test_lora_is_refused(weights, refused):
    weights['transformer.encoder.layers.0.linear1.lora_A'] = torch.zeros(8, SMALL.dim)
    weights['transformer.encoder.layers.0.linear1.lora_B'] = torch.zeros(SMALL.hidden, 8)
    message = refused(weights)
    assert "'transformer.encoder.layers.0.linear1.lora_A' is a LoRA matrix" in message
    assert 'convert the pre-trained model' in message


@pytest.mark.parametrize(
    'name, variant',
    [
        ('transformer.decoder.bbox_embed.0.layers.0.weight', 'box refinement'),
        ('transformer.enc_output.weight', 'two-stage'),
    ],
)
def test_variants_that_mmdet_publishes(weights, refused, name, variant):
    weights[name] = torch.zeros(1)
    sentence = refused(weights)
    assert variant in sentence and 'MMDetection publishes itself' in sentence


def test_heads_of_their_own(weights, refused):
    weights['class_embed.1.bias'] = weights['class_embed.1.bias'] + 1
    assert "'class_embed.1.bias' differs from 'class_embed.0.bias'" in refused(weights)


@pytest.mark.parametrize(
    'name, value, shape',
    [
        ('class_embed.0.weight', torch.zeros(7, 64), '(91, 64)'),
        ('transformer.level_embed', torch.zeros(64), '(any, any)'),
        (
            'transformer.encoder.layers.1.self_attn.attention_weights.bias',
            torch.zeros(80),
            '(160)',
        ),
        ('input_proj.0.0.weight', torch.zeros(64, 2048, 1, 1), '(64, 512, 1, 1)'),
        ('query_embed.weight', 'text', '(any, 128)'),
    ],
)
def test_other_shapes(weights, refused, name, value, shape):
    weights[name] = value
    sentence = refused(weights)
    assert sentence.startswith(f'{name!r} has the shape') and f'and not {shape}' in sentence


def test_channels_that_make_no_groups(weights, refused):
    weights['transformer.level_embed'] = torch.zeros(5, 48)
    weights['query_embed.weight'] = torch.zeros(9, 96)
    weights['transformer.encoder.layers.0.linear1.weight'] = torch.zeros(48, 48)
    assert '48 channels' in refused(weights)


@pytest.mark.parametrize('content', [{'state_dict': {}}, {'model': [1]}, [1], {'model': {1: 2}}])
def test_no_model(tool, tmp_path, content, reading):
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(ForgettingError, match="no key 'model' with weights"):
        tool.main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])


class Loud:
    """What a hostile file would hold: unpickled, it runs a command."""

    def __reduce__(self):
        return print, ('ran',)


def test_no_code_of_the_file_is_run(tool, tmp_path, capsys, reading):
    torch.save(dict(model={}, args=Loud()), tmp_path / 'in.pth')
    with pytest.raises(ForgettingError, match='cannot be read'):
        tool.main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'PK\x03\x04 cut off'])
def test_no_checkpoint(tool, tmp_path, content, reading):
    (tmp_path / 'in.pth').write_bytes(content)
    with pytest.raises(ForgettingError, match='cannot be read'):
        tool.main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])


def test_old_torch_says_what_it_needs(tool, tmp_path, monkeypatch):
    (tmp_path / 'in.pth').touch()
    monkeypatch.delattr(torch.serialization, 'add_safe_globals', raising=False)
    with pytest.raises(ForgettingError, match='needs 2.4 or newer'):
        tool.read(tmp_path / 'in.pth')


def test_a_failed_write_leaves_nothing(tool, tmp_path, reading):
    (tmp_path / 'out.pth').mkdir()
    with pytest.raises(ForgettingError, match='cannot be written'):
        tool.save(dict(a=1), tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['out.pth']


def test_command_line(request, tmp_path):
    root = request.config.rootpath
    result = subprocess.run(
        [sys.executable, TOOL, str(tmp_path / 'none.pth'), str(tmp_path / 'out.pth')],
        cwd=root,
        env=os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
    assert 'does not exist' in result.stderr
