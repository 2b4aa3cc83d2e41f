"""The authors' Face Transformer, written down small, answers as ours does once converted."""

import importlib.util
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mmgslora.errors import ForgettingError

TOOL = 'tools/convert_face_transformer.py'
# Every size differs from every other, and no default of either code is among them.
SMALL = SimpleNamespace(
    image=20, patch=4, dim=24, depth=3, heads=8, head=5, mlp=36, classes=7, patches=25
)
FULL = SimpleNamespace(
    image=112, patch=8, dim=512, depth=6, heads=8, head=64, mlp=2048, classes=100, patches=196
)


def layout(size):
    """Names and shapes of the authors' state dict (vit_pytorch_face/vit_face.py, no LoRA)."""
    shapes = {
        'pos_embedding': (1, size.patches + 1, size.dim),
        'cls_token': (1, 1, size.dim),
        'patch_to_embedding.weight': (size.dim, 3 * size.patch**2),
        'patch_to_embedding.bias': (size.dim,),
    }
    for i in range(size.depth):
        attention = f'transformer.layers.{i}.0.fn'
        feed_forward = f'transformer.layers.{i}.1.fn'
        inner = size.heads * size.head
        shapes |= {
            f'{attention}.norm.weight': (size.dim,),
            f'{attention}.norm.bias': (size.dim,),
            f'{attention}.fn.to_qkv.weight': (3 * inner, size.dim),
            f'{attention}.fn.to_out.0.weight': (size.dim, inner),
            f'{attention}.fn.to_out.0.bias': (size.dim,),
            f'{feed_forward}.norm.weight': (size.dim,),
            f'{feed_forward}.norm.bias': (size.dim,),
            f'{feed_forward}.fn.net.0.weight': (size.mlp, size.dim),
            f'{feed_forward}.fn.net.0.bias': (size.mlp,),
            f'{feed_forward}.fn.net.3.weight': (size.dim, size.mlp),
            f'{feed_forward}.fn.net.3.bias': (size.dim,),
        }
    shapes |= {'mlp_head.0.weight': (size.dim,), 'mlp_head.0.bias': (size.dim,)}
    return shapes | {'loss.weight': (size.classes, size.dim)}


def original(weights, image, size):
    """Embedding (dim,) of one image (3, H, W), token by token and head by head."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        return scaled * weights[f'{name}.weight'] + weights[f'{name}.bias']

    def linear(x, name):
        return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    p = size.patch
    tokens = [weights['cls_token'][0, 0]]
    for top in range(0, size.image, p):
        for left in range(0, size.image, p):
            pixels = [
                image[channel, top + y, left + x]
                for y in range(p)
                for x in range(p)
                for channel in range(3)
            ]
            tokens.append(linear(torch.stack(pixels), 'patch_to_embedding'))
    x = torch.stack(tokens) + weights['pos_embedding'][0]
    for i in range(size.depth):
        name = f'transformer.layers.{i}'
        query, key, value = (
            norm(x, f'{name}.0.fn.norm') @ weights[f'{name}.0.fn.fn.to_qkv.weight'].T
        ).chunk(3, -1)
        mixed = []
        for q, k, v in zip(*(t.split(size.head, -1) for t in (query, key, value))):
            # The width of the tokens, not of the head.
            mixed.append((q @ k.T / math.sqrt(size.dim)).softmax(-1) @ v)
        x = x + linear(torch.cat(mixed, -1), f'{name}.0.fn.fn.to_out.0')
        hidden = linear(norm(x, f'{name}.1.fn.norm'), f'{name}.1.fn.fn.net.0')
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
        x = x + linear(hidden, f'{name}.1.fn.fn.net.3')
    return norm(x[0], 'mlp_head.0')


@pytest.fixture(scope='module')
def tool(request):
    path = request.config.rootpath / TOOL
    spec = importlib.util.spec_from_file_location('convert_face_transformer', path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script: it shares code with another tool
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.fixture
def weights():
    """Random numbers everywhere, of sizes that keep attention and GELU from being flat."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        * (shape[-1] ** -0.5 * 2 if len(shape) == 2 else 0.7)
        for name, shape in layout(SMALL).items()
    }


@pytest.fixture
def refused(tool):
    """The sentence that weights are refused with."""

    def refused(weights, image_size=SMALL.image):
        with pytest.raises(ForgettingError) as caught:
            tool.convert(weights, image_size)
        return str(caught.value)

    return refused


def convert_file(tool, weights, folder):
    torch.save(weights, folder / 'in.pth')
    out = folder / 'new' / 'out.pth'
    tool.main([str(folder / 'in.pth'), str(out), f'--image-size={SMALL.image}'])
    (folder / 'in.pth').unlink()
    assert [path.name for path in out.parent.iterdir()] == ['out.pth']
    return out


def classifier(head='CosineMarginHead'):
    backbone = dict(
        type='FaceTransformer',
        image_size=SMALL.image,
        patch_size=SMALL.patch,
        num_layers=SMALL.depth,
        num_heads=SMALL.heads,
        hidden_dim=SMALL.dim,
        mlp_dim=SMALL.mlp,
        head_dim=SMALL.head,
    )
    head = dict(type=head, embed_dims=SMALL.dim, num_classes=SMALL.classes)
    return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).double().eval()


@torch.no_grad()
def test_same_outputs(tool, weights, tmp_path, capsys):
    model = classifier()
    path = convert_file(tool, weights, tmp_path)
    assert f'{len(weights)} weights' in capsys.readouterr().out
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    images = 3 * torch.randn(3, 3, SMALL.image, SMALL.image, dtype=torch.float64)
    expected = torch.stack([original(weights, image, SMALL) for image in images])
    logits, embeddings = model(images)
    # Outputs that hardly vary would agree whatever was mixed up.
    assert expected.std(0).mean() > 0.05
    torch.testing.assert_close(embeddings, expected, atol=1e-8, rtol=0)
    cosines = torch.nn.functional.cosine_similarity(
        expected[:, None], weights['loss.weight'][None], dim=-1
    )
    torch.testing.assert_close(logits, 64 * cosines, atol=1e-8, rtol=0)


@torch.no_grad()
def test_softmax_head(tool, weights):
    weights['loss.bias'] = torch.randn(SMALL.classes, dtype=torch.float64)
    state_dict, cfg = tool.convert(weights, SMALL.image)
    assert cfg['head']['type'] == 'LinearHead'
    model = classifier('LinearHead')
    model.load_state_dict(state_dict)
    image = torch.rand(3, SMALL.image, SMALL.image, dtype=torch.float64)
    expected = weights['loss.weight'] @ original(weights, image, SMALL) + weights['loss.bias']
    torch.testing.assert_close(model(image[None])[0][0], expected, atol=1e-8, rtol=0)


def test_full_size_is_the_default_model(tool):
    weights = {k: torch.zeros(1).expand(shape) for k, shape in layout(FULL).items()}
    state_dict, cfg = tool.convert(weights)
    backbone = dict(type='FaceTransformer')
    head = dict(type='CosineMarginHead', embed_dims=512, num_classes=100)
    with torch.device('meta'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
        built = MODELS.build(cfg)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in state_dict.items()} == wanted
    # What the shapes do not tell.
    ours, theirs = model.backbone.blocks[0].attention, built.backbone.blocks[0].attention
    assert (ours.num_heads, ours.scale) == (theirs.num_heads, theirs.scale) == (8, 512**-0.5)


def test_missing_weight(refused, weights):
    for name in ('loss.weight', 'transformer.layers.2.1.fn.fn.net.3.bias', 'pos_embedding'):
        rest = {key: value for key, value in weights.items() if key != name}
        assert f'{name!r} is missing' in refused(rest)


def test_unknown_weight(refused, weights):
    weights['transformer.layers.0.2.fn.norm.weight'] = torch.zeros(SMALL.dim)
    assert "'transformer.layers.0.2.fn.norm.weight' has no place" in refused(weights)


def test_wrong_shape(refused, weights):
    weights['mlp_head.0.bias'] = torch.zeros(SMALL.dim + 1)
    assert "'mlp_head.0.bias' has the shape (25,) and not (24)" in refused(weights)


def test_lora_is_refused(refused, weights):
    weights['transformer.layers.0.1.fn.fn.net.0.lora_A'] = torch.zeros(8, SMALL.dim)
    weights['transformer.layers.0.1.fn.fn.net.0.lora_B'] = torch.zeros(SMALL.mlp, 8)
    message = refused(weights)
    assert "'transformer.layers.0.1.fn.fn.net.0.lora_A' is a LoRA matrix" in message
    assert 'merged into already' in message


def test_overlapping_patches_are_refused(refused):
    # ViTs_face: 12 x 12 pixels every 8 give 14 x 14 patches of 112 x 112 pixels.
    vits = SimpleNamespace(**{**vars(FULL), 'patch': 12, 'depth': 1})
    weights = {k: torch.zeros(1).expand(shape) for k, shape in layout(vits).items()}
    assert '196 patches of 432 numbers do not tile images of 112 x 112' in refused(weights, 112)


def test_other_heads_are_refused(refused, weights):
    for i in range(SMALL.depth):
        name = f'transformer.layers.{i}.0.fn.fn'
        weights[f'{name}.to_qkv.weight'] = torch.zeros(3 * 36, SMALL.dim)
        weights[f'{name}.to_out.0.weight'] = torch.zeros(SMALL.dim, 36)
    assert 'The attention is 36 wide' in refused(weights)


def test_no_such_file(tool, tmp_path):
    with pytest.raises(ForgettingError, match="nowhere.pth' does not exist"):
        tool.main([str(tmp_path / 'nowhere.pth'), str(tmp_path / 'out.pth')])


def test_weights_of_several_gpus(tool, weights, tmp_path):
    plain = convert_file(tool, weights, tmp_path).read_bytes()
    (tmp_path / 'new' / 'out.pth').unlink()
    parallel = {f'module.{name}': weight for name, weight in weights.items()}
    assert convert_file(tool, parallel, tmp_path).read_bytes() == plain


@pytest.mark.parametrize('content', [dict(state_dict={}, epoch=3), {1: torch.zeros(1)}])
def test_more_than_weights(tool, tmp_path, content):
    torch.save(content, tmp_path / 'in.pth')
    with pytest.raises(ForgettingError, match='holds more than named weights'):
        tool.main([str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert not (tmp_path / 'out.pth').exists()


def test_as_a_script_it_says_one_sentence(repo_root, tmp_path):
    (tmp_path / 'in.pth').write_bytes(b'no checkpoint')
    command = [sys.executable, repo_root / TOOL, tmp_path / 'in.pth', tmp_path / 'out.pth']
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith('error: ')
    assert 'cannot be read as weights' in run.stderr and 'Traceback' not in run.stderr
