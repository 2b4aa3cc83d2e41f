"""Networks of other libraries: their parts, their outputs and their files stay their own."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights, WeightsEnum

from mmgslora.errors import ForgettingError
from mmgslora.lora import inject_lora, lora_layers
from mmgslora.models import LibraryClassifier, TimmClassifier, TorchvisionClassifier

VIT = dict(
    type='torchvision.models.VisionTransformer',
    image_size=8,
    patch_size=4,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    mlp_dim=12,
    num_classes=3,
)
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tiny_vit():
    return torchvision.models.VisionTransformer(**{k: v for k, v in VIT.items() if k != 'type'})


class MeanColour(nn.Module):
    """Two Linears at the root, the first of which is no head, and a buffer."""

    def __init__(self, twice=False, wrap=False):
        super().__init__()
        self.register_buffer('shift', torch.zeros(3))
        self.inner = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5)
        self.twice, self.wrap = twice, wrap

    def forward(self, images):
        colours = torch.relu(self.inner(images.mean((2, 3)) + self.shift))
        logits = self.head(colours)
        if self.twice:
            return (logits + self.head(-colours)) / 2
        return SimpleNamespace(logits=logits) if self.wrap else logits


@pytest.mark.parametrize('wrap', [False, True])
def test_embeddings_are_what_the_last_linear_reads(wrap):
    model = LibraryClassifier(MeanColour(wrap=wrap))
    with torch.no_grad():
        model.plain.inner.weight.copy_(torch.eye(3))
        model.plain.inner.bias.fill_(0.5)
        model.plain.shift.fill_(1.0)
    images = torch.zeros(1, 3, 2, 2)
    images[0, 0], images[0, 2] = 2.0, -9.0
    logits, embeddings = model(images)
    assert embeddings.tolist() == [[3.5, 1.5, 0.0]]
    torch.testing.assert_close(logits, model.class_layer(embeddings))
    assert model.num_classes == 5 and model.class_layer is model.plain.head
    assert not model.class_layer._forward_hooks


def test_three_modes():
    model = LibraryClassifier(ConfigDict(VIT)).eval()
    labels = torch.tensor([0, 2, 1, 1])
    samples = [BaseDataElement(gt_label=label) for label in labels]
    plain = model.plain(IMAGES)
    logits, embeddings = model(IMAGES)
    assert torch.equal(logits, plain) and embeddings.shape == (4, 8)
    loss = model(list(IMAGES), samples, mode='loss')['loss_ce']
    torch.testing.assert_close(loss, F.cross_entropy(plain, labels))
    predicted = model(IMAGES, samples, mode='predict')
    torch.testing.assert_close(torch.stack([s.pred_logits for s in predicted]), plain)
    torch.testing.assert_close(torch.stack([s.embedding for s in predicted]), embeddings)


def test_files_of_the_plain_network_and_back(tmp_path):
    plain, other = tiny_vit(), tiny_vit()
    model = LibraryClassifier(copy.deepcopy(VIT))
    assert model.state_dict().keys() == plain.state_dict().keys()
    nn.init.normal_(plain.heads.head.weight)  # torchvision's starts at zero
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    load_checkpoint(model, str(tmp_path / 'plain.pth'), strict=True)
    model.eval()
    assert torch.equal(model(IMAGES)[0], plain.eval()(IMAGES)) and plain(IMAGES).std() > 0.01
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.eval()(IMAGES), plain(IMAGES))


def test_parts_are_replaced_in_both():
    """An adapter on a Linear at the root of the network is called, and learns."""
    model = LibraryClassifier(MeanColour())
    names = inject_lora(model, rank=1, target='inner')
    assert names == ['inner'] and model.plain.inner is lora_layers(model)['inner']
    before, _ = model(IMAGES)
    model.get_submodule('inner').lora_B.data.fill_(3.0)
    after, _ = model(IMAGES)
    assert not torch.equal(after, before)
    after.sum().backward()
    assert model.get_submodule('inner').lora_A.grad is not None
    twin = copy.deepcopy(model)
    twin.get_submodule('inner').lora_B.data.zero_()
    assert torch.equal(twin(IMAGES)[0], before) and torch.equal(model(IMAGES)[0], after)
    assert twin.plain._modules is twin._modules


def test_a_part_of_the_network_may_be_called_network():
    """VOLO's is; adapters and the blocks of an audit are reached by such names."""
    net = nn.Sequential()
    net.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    net.head = nn.Linear(4, 2)
    model = LibraryClassifier(net)
    assert inject_lora(model, rank=1, target='network.1') == ['network.1']
    assert model.get_submodule('network.1') is net.network[1]
    assert model(IMAGES)[0].shape == (4, 2)


def test_the_whole_network_changes_mode_and_type():
    model = LibraryClassifier(MeanColour())
    assert model.plain.training and not model.eval().plain.training
    assert model.double().plain.head.weight.dtype == torch.float64
    assert model.plain.shift.dtype == torch.float64


def test_it_starts_from_a_checkpoint_named_in_init_cfg(tmp_path):
    plain = tiny_vit()
    nn.init.normal_(plain.heads.head.weight)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
    model = LibraryClassifier(VIT, init_cfg=init)
    model.init_weights()
    assert torch.equal(model.class_layer.weight, plain.heads.head.weight)


@pytest.mark.parametrize(
    'net, settings, message',
    [
        (MeanColour(twice=True), {}, "not what its Linear 'head' gives, called once"),
        (MeanColour(), dict(last='inner'), "not what its Linear 'inner' gives"),
        (VIT, {}, '6 x 6 pixels and VisionTransformer needs 8 x 8'),
    ],
)
def test_calls_that_are_refused(net, settings, message):
    model = LibraryClassifier(net, **settings)
    with pytest.raises(ForgettingError, match=message):
        model(torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize(
    'net, settings, message',
    [
        (nn.Conv2d(3, 4, 1), {}, 'Conv2d has no Linear; a classifier must end in one'),
        (MeanColour(), dict(last='haed'), r"last is 'haed'.*did you mean 'head'\?"),
        (dict(type='torchvision.models.vit_b16'), {}, "'torchvision.models.vit_b16', which is nei"),
        (dict(VIT, num_head=2), {}, "VisionTransformer cannot be built: .*argument 'num_head'"),
        (dict(VIT, image_size=9), {}, 'cannot be built: Input shape indivisible by patch size'),
        (dict(type='ResNet', _scope_='mmpretrian'), {}, 'mmpretrian is not installed'),
        (dict(type='types.SimpleNamespace'), {}, 'gives a SimpleNamespace, which is no'),
        (dict(depth=18), {}, 'net.type is None'),
        ('resnet18', {}, "net is 'resnet18'; it can be"),
    ],
)
def test_networks_that_are_refused(net, settings, message):
    with pytest.raises(ForgettingError, match=message):
        LibraryClassifier(net, **settings)


def test_torchvision_by_name():
    model = TorchvisionClassifier('resnet18', num_classes=4)
    plain = torchvision.models.resnet18(num_classes=4)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.num_classes == 4 and not model.is_pretrained
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    logits, embeddings = model.eval()(images)
    assert torch.equal(logits, plain.eval()(images)) and embeddings.shape == (2, 512)


@pytest.mark.parametrize('num_classes, rows', [(None, 1000), (1000, 1000), (6, 6)])
def test_torchvision_with_published_weights(monkeypatch, num_classes, rows):
    """The published body; its head too, unless another number of classes is asked for."""
    theirs = torchvision.models.resnet18()
    monkeypatch.setattr(WeightsEnum, 'get_state_dict', lambda entry, **_: theirs.state_dict())
    model = TorchvisionClassifier('resnet18', weights='DEFAULT', num_classes=num_classes)
    assert model.class_layer.weight.shape == (rows, 512)
    assert torch.equal(model.plain.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    kept = rows == 1000
    assert model.is_pretrained == kept
    assert not kept or torch.equal(model.class_layer.weight, theirs.fc.weight)


def test_torchvision_without_a_network(monkeypatch):
    def offline(*_, **__):
        raise OSError('name or service not known')

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', offline)
    monkeypatch.setattr(sys.modules[WeightsEnum.__module__], 'load_state_dict_from_url', offline)
    url = ResNet18_Weights.DEFAULT.url.rpartition('/')[2]
    with pytest.raises(ForgettingError, match=f'cannot be downloaded .*{url} .*not known.*TORCH'):
        TorchvisionClassifier('resnet18', weights='IMAGENET1K_V1')


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(name='vit_b16'), r"no classifier 'vit_b16' among \d+; did you mean vit_b_16 or"),
        (dict(name='ResNet-18'), 'did you mean resnet18 or'),
        (dict(name='fcn_resnet50'), 'no classifier'),
        (dict(name='resnet18', weights='IMAGENET1K_V2'), r"did you mean 'IMAGENET1K_V1'\?"),
        (dict(name='resnet18', widht=3), "resnet18 cannot be built: .*'widht'"),
        (dict(name='resnet18', num_classes=0), 'num_classes is 0; it can be a whole number'),
        (dict(name='squeezenet1_0'), 'SqueezeNet has no Linear'),
    ],
)
def test_torchvision_mistakes(settings, message):
    with pytest.raises(ForgettingError, match=message):
        TorchvisionClassifier(**settings)


def test_the_config_shows_images_as_the_published_weights_want_them(repo_root):
    cfg = Config.fromfile(repo_root / 'configs/classification/vit-b16_folder.py')
    wanted = ViT_B_16_Weights[cfg.model.weights].transforms()
    resize, crop, _, _, normalise = cfg.test_dataloader.dataset.transforms
    assert [resize.size, crop.size] == [*wanted.resize_size, *wanted.crop_size]
    assert normalise.mean == wanted.mean and normalise.std == wanted.std
    assert cfg.val_dataloader.dataset.transforms == cfg.test_dataloader.dataset.transforms


# The interface of mmpretrain's ImageClassifier, in a registry of its own scope.
STANDIN = Registry('model', parent=MODELS, scope='standin')


@STANDIN.register_module()
class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, images):
        return (self.conv(images).relu().mean((2, 3)),)


@STANDIN.register_module()
class ImageClassifier(BaseModel):
    """Has the name of ours, a data preprocessor, parts named head, and modes."""

    def __init__(self, backbone):
        super().__init__(
            data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[9] * 3, std=[2] * 3)
        )
        self.backbone = STANDIN.build(backbone)
        self.head = nn.ModuleDict(dict(fc=nn.Linear(6, 3)))
        self.was_initialised = False

    def init_weights(self):
        self.was_initialised = True

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'tensor'
        return self.head['fc'](self.backbone(inputs)[-1])


def test_a_library_of_openmmlab():
    DefaultScope.get_instance('openmmlab', scope_name='mmengine')
    net = dict(_scope_='standin', type='ImageClassifier', backbone=dict(type='Backbone'))
    model = LibraryClassifier(net)
    plain = MODELS.build(copy.deepcopy(net))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert list(model.state_dict())[-1] == 'head.fc.bias'
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(IMAGES)[0], plain(IMAGES))
    assert torch.equal(model.data_preprocessor(dict(inputs=IMAGES))['inputs'], IMAGES)
    model.init_weights()
    assert model.plain.was_initialised


def test_the_config_in_the_docs_takes_the_model_of_mmpretrains(repo_root, tmp_path, monkeypatch):
    """get_config marks no scope; a base would, and then dict(_scope_=..., **model) has it twice."""
    theirs = dict(type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=1000))
    asked = []
    monkeypatch.setattr(
        'mmengine.hub.get_config', lambda name: asked.append(name) or Config(dict(model=theirs))
    )
    text = (repo_root / 'docs/models.md').read_text()
    block = next(b for b in text.split('```python\n')[1:] if 'get_config' in b).partition('```')[0]
    folder = repo_root / 'configs/classification'
    (tmp_path / 'mine.py').write_text(block.replace("'./gslora", f"'{folder.as_posix()}/gslora"))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert asked == ['mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py']
    assert cfg.model.type == 'ForgettingClassifier' and cfg.model.method.type == 'GuidedGSLoRA'
    head = dict(type='LinearClsHead', num_classes=10)
    net = dict(type='ImageClassifier', head=head, _scope_='mmpretrain')
    assert cfg.model.classifier == dict(type='LibraryClassifier', net=net)
    assert "net=dict(net, _scope_='mmpretrain')" in text and '**_base_.model' not in text


def test_a_library_that_cannot_be_imported(tmp_path, monkeypatch):
    """It is not looked for among our own classes, which have an ImageClassifier, too."""
    for name, files in {
        'halflib': {'__init__': 'import its_missing_part'},
        'latelib': {
            '__init__': '',
            'registry': 'from mmengine.registry import MODELS, Registry\n'
            "Registry('model', parent=MODELS, scope='latelib', locations=['latelib.models'])",
            'models': 'import its_missing_part',
        },
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / f'{file}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MODELS, '_children', dict(MODELS.children))
    for name in ('halflib', 'latelib', 'latelib'):  # the last is a known scope by then
        net = dict(_scope_=name, type='ImageClassifier', backbone=dict(type='ResNet'), neck=None)
        message = f"{name} is installed and cannot be imported: No module named 'its_missing_part'"
        with pytest.raises(ForgettingError, match=message):
            LibraryClassifier(net)


def test_a_part_that_the_library_does_not_have():
    net = dict(_scope_='standin', type='ImageClassifier', backbone=dict(type='Bakcbone'))
    with pytest.raises(ForgettingError, match='ImageClassifier cannot be built: .*Bakcbone is not'):
        LibraryClassifier(net)


def test_timm_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr('mmgslora.models.library_classifier.find_spec', lambda _: None)
    with pytest.raises(ForgettingError, match='timm is not installed; pip install timm'):
        TimmClassifier('resnet18')


def test_timm():
    timm = pytest.importorskip('timm')
    small = dict(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    model = TimmClassifier('vit_tiny_patch16_224', num_classes=3, **small).eval()
    plain = timm.create_model('vit_tiny_patch16_224', num_classes=3, **small).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 16)
    logits, embeddings = model(images)
    assert torch.equal(logits, plain(images)) and embeddings.shape == (2, 8)
    with pytest.raises(ForgettingError, match='did you mean vit_tiny_patch16_224 or'):
        TimmClassifier('vit_tiny_patch16_225')
    with pytest.raises(ForgettingError, match="no weights 'augreg' of vit_tiny.*did you mean"):
        TimmClassifier('vit_tiny_patch16_224', weights='augreg')
    with pytest.raises(ForgettingError, match='comes without a head; set num_classes'):
        TimmClassifier('vit_small_patch14_dinov2', img_size=28, depth=1)


def test_mmpretrain():
    pytest.importorskip('mmpretrain')
    backbone = dict(type='VisionTransformer', arch='deit-tiny', img_size=32, patch_size=16)
    head = dict(type='VisionTransformerClsHead', num_classes=3, in_channels=192)
    net = dict(_scope_='mmpretrain', type='ImageClassifier', backbone=backbone, head=head)
    model, plain = LibraryClassifier(net).eval(), MODELS.build(copy.deepcopy(net)).eval()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images)[0], plain(images))
    assert model.class_layer is model.plain.head.layers.head
