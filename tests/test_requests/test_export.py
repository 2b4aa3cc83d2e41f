import copy

import pytest
import torch
import torchvision

from mmgslora.errors import ForgettingError
from mmgslora.lora.stored import StoredAdapter
from mmgslora.models import ImageClassifier
from mmgslora.requests import RequestSequence, add, contents, export, merge
from mmgslora.requests.export import files_to_destroy
from mmgslora.requests.onnx_file import write_onnx

from .made_run import CLASSIFIER, make_run


def load(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_merge_and_add_leave_the_base_as_it_is(made, tmp_path):
    sequence = RequestSequence(made.work_dir)
    before = made.base.read_bytes()
    assert merge(sequence, [1, 2], tmp_path / 'two.pth') == tmp_path / 'two.pth'
    assert same(load(tmp_path / 'two.pth')['state_dict'], made.weights[2])
    assert load(tmp_path / 'two.pth')['meta']['forgotten'] == ['cat', 'dog']

    adapter = StoredAdapter.read(made.work_dir / 'adapters/task_01')
    add(adapter, made.base, tmp_path / 'one.pth')
    assert same(load(tmp_path / 'one.pth')['state_dict'], made.weights[1])
    assert load(tmp_path / 'one.pth')['meta']['forgotten'] == ['cat']
    with pytest.raises(ForgettingError, match='is merged into this model already'):
        add(adapter, tmp_path / 'one.pth', tmp_path / 'twice.pth')
    with pytest.raises(ForgettingError, match='belongs to another model'):
        add(adapter, tmp_path / 'two.pth', tmp_path / 'twice.pth')
    with pytest.raises(ForgettingError, match='exists already'):
        add(adapter, made.base, made.base)
    assert made.base.read_bytes() == before and not (tmp_path / 'twice.pth').exists()


def test_the_form_of_torchvision(made, tmp_path):
    """torchvision's own VisionTransformer loads it and gives the same logits."""
    export(RequestSequence(made.work_dir), tmp_path / 'out.pth', form='torchvision')
    sizes = {k: v for k, v in CLASSIFIER['backbone'].items() if k != 'type'}
    theirs = torchvision.models.VisionTransformer(num_classes=5, **sizes).eval()
    theirs.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True))
    ours = ImageClassifier(**copy.deepcopy(CLASSIFIER)).eval()
    ours.load_state_dict(made.weights[3])
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(images), ours(images)[0])


def test_what_cannot_be_handed_out(made, tmp_path):
    sequence = RequestSequence(made.work_dir)
    with pytest.raises(ForgettingError, match="form is 'zip'; it can be checkpoint"):
        export(sequence, tmp_path / 'out', form='zip')
    with pytest.raises(ForgettingError, match='original.pth. exists already'):
        export(sequence, made.base)
    merged = made.work_dir / 'merged/task_03.pth'
    merged.write_bytes((made.work_dir / 'merged/task_02.pth').read_bytes())
    with pytest.raises(ForgettingError, match='Line 3 of .*task_03.pth was changed'):
        export(RequestSequence(made.work_dir), tmp_path / 'out')
    assert len(sequence.ledger.entries) == 3 and not (tmp_path / 'out').exists()


def test_cosines_have_no_place_in_torchvision(tmp_path):
    head = dict(type='CosineMarginHead', embed_dims=16, num_classes=5)
    made = make_run(tmp_path, plain=ImageClassifier(copy.deepcopy(CLASSIFIER['backbone']), head))
    with pytest.raises(ForgettingError, match='no VisionTransformer of torchvision'):
        export(RequestSequence(made.work_dir), tmp_path / 'out.pth', form='torchvision')


def test_files_to_destroy(made):
    for name in ('epoch_3.pth', 'prototypes.safetensors', 'forgetting.png', 'before_after.png'):
        (made.work_dir / name).write_bytes(b'')
    found = files_to_destroy(RequestSequence(made.work_dir))
    assert set(found) == {
        str(made.base),
        'adapters/task_01',
        'adapters/task_02',
        'adapters/task_03',
        'epoch_3.pth',
        'prototypes.safetensors',
        'before_after.png',
        'merged/task_01.pth',
        'merged/task_02.pth',
    }
    assert 'merged/task_03.pth' in files_to_destroy(RequestSequence(made.work_dir), sealed=True)


def test_what_an_adapter_holds(made):
    """Norms worked out by hand; the block that the second task left alone is named as zero."""
    first, second = contents(StoredAdapter.read(made.work_dir / 'adapters/task_02'))
    assert (first.kept, first.layers, first.norm_b, first.parameters) == (0, 2, 0.0, 0)
    pairs = [made.pairs[1][name] for name in list(made.pairs[1])[2:]]
    by_hand = sum((scale * b @ a).square().sum() for a, b, scale in pairs).sqrt()
    assert second.norm_update == pytest.approx(by_hand.item(), rel=1e-5)
    assert second.norm_b == pytest.approx(
        sum(b.square().sum() for _, b, _ in pairs).sqrt().item(), rel=1e-5
    )
    assert second.parameters == 2 * 2 * (16 + 24)  # two Linears, rank 2


@pytest.mark.parametrize('kind', ['VisionTransformer', 'FaceTransformer'])
def test_a_classifier_as_onnx(tmp_path, kind):
    """Any number of images, and the logits of PyTorch."""
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    backbone = dict(CLASSIFIER['backbone'], type=kind)
    head = dict(type='CosineMarginHead', embed_dims=16, num_classes=5)
    model = ImageClassifier(backbone, head).eval()
    model.head.seal([3])
    assert write_onnx(model, 'classifier', tmp_path / 'a.onnx')
    session = runtime.InferenceSession(str(tmp_path / 'a.onnx'), providers=['CPUExecutionProvider'])
    images = torch.randn(3, 3, 16, 16)
    (logits,) = session.run(None, {'images': images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images)[0], rtol=1e-4, atol=1e-4)


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    model = ImageClassifier(**copy.deepcopy(CLASSIFIER))
    with pytest.raises(ForgettingError, match="needs the package 'onnx'"):
        write_onnx(model, 'classifier', tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())
