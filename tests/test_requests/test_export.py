import copy
import json

import pytest
import torch
import torchvision

from mmgslora.errors import ForgettingError
from mmgslora.lora.stored import StoredAdapter
from mmgslora.models import ImageClassifier, LibraryClassifier
from mmgslora.requests import RequestSequence, add, contents, export, merge, onnx_file
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


def test_nothing_is_handed_out_without_its_line(made, tmp_path, monkeypatch):
    sequence = RequestSequence(made.work_dir)

    def full(*_, **__):
        raise OSError(28, 'No space left on device', 'ledger.jsonl')

    monkeypatch.setattr(sequence.ledger, 'append', full)
    with pytest.raises(OSError, match='No space left'):
        export(sequence, tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_the_form_of_torchvision(made, tmp_path):
    """torchvision's own VisionTransformer loads it and gives the same logits."""
    export(RequestSequence(made.work_dir), tmp_path / 'out.pth', form='torchvision')
    theirs = vit_of_torchvision().eval()
    theirs.load_state_dict(torch.load(tmp_path / 'out.pth', weights_only=True))
    ours = ImageClassifier(**copy.deepcopy(CLASSIFIER)).eval()
    ours.load_state_dict(made.weights[3])
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(images), ours(images)[0])


def test_a_network_of_torchvision_in_the_form_of_torchvision(tmp_path):
    made = make_run(tmp_path, plain=LibraryClassifier(vit_of_torchvision()).eval())
    export(RequestSequence(made.work_dir), tmp_path / 'out.pth', form='torchvision')
    vit_of_torchvision().load_state_dict(load(tmp_path / 'out.pth'))
    assert same(load(tmp_path / 'out.pth'), made.weights[3])


def test_what_cannot_be_handed_out(made, tmp_path):
    sequence = RequestSequence(made.work_dir)
    with pytest.raises(ForgettingError, match="form is 'zip'; it can be checkpoint"):
        export(sequence, tmp_path / 'out', form='zip')
    with pytest.raises(ForgettingError, match="no ONNX file: the form is 'checkpoint'"):
        export(sequence, tmp_path / 'out.onnx')
    assert not (tmp_path / 'out.onnx').exists()
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
    assert found[str(made.base)] == 'the original model: it knows every class'
    assert 'merged/task_03.pth' in files_to_destroy(RequestSequence(made.work_dir), sealed=True)
    moved = files_to_destroy(RequestSequence(made.work_dir, 'moved.pth'))
    assert moved['moved.pth'] == found[str(made.base)]


def change_record(made, change):
    path = made.work_dir / 'forgetting.json'
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_files_to_destroy_of_a_run_that_went_on_from_another(made):
    def without_tree(record):
        for task in record['tasks']:
            task['old'].append('tree')
            task['retain'].remove('tree')

    change_record(made, without_tree)
    why = files_to_destroy(RequestSequence(made.work_dir))[str(made.base)]
    assert why.startswith('the model before this run') and 'list of its own' in why


@pytest.mark.parametrize('teacher', ['merged/task_03.pth', 'merged/task_{task:02d}.pth'])
def test_files_to_destroy_after_learning_from_a_teacher(made, tmp_path, teacher):
    first = make_run(tmp_path / 'first').work_dir
    (first / 'epoch_3.pth').write_bytes(b'')
    method = dict(type='UNDO', teacher=f'{first}/{teacher}', noise=0.5)
    before = files_to_destroy(RequestSequence(made.work_dir)).keys()
    change_record(made, lambda record: record.update(method=method))
    found = files_to_destroy(RequestSequence(made.work_dir))
    names = ('adapters', 'merged')
    theirs = [f'{kind}/task_{n:02d}' for kind in names for n in (1, 2, 3)]
    assert found.keys() - before == {
        f'{first}/epoch_3.pth',
        *(f'{first}/{name}{".pth" if "merged" in name else ""}' for name in theirs),
    }
    assert 'inside it the classes' in found[f'{first}/merged/task_03.pth']
    elsewhere = dict(method, teacher='gone/{task}.pth')
    change_record(made, lambda record: record.update(method=elsewhere))
    found = files_to_destroy(RequestSequence(made.work_dir))
    assert found.keys() - before == {'gone/1.pth', 'gone/2.pth', 'gone/3.pth'}


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


class Parts(torch.nn.Module):
    """What mmpretrain's networks are like: a neck between backbone and head."""

    def __init__(self):
        super().__init__()
        self.backbone, self.neck = torch.nn.Conv2d(3, 4, 4, stride=4), torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)
        torch.nn.init.uniform_(self.neck.running_mean)

    def forward(self, images):
        return self.head(self.neck(self.backbone(images)).mean((2, 3)))


def vit_of_torchvision():
    sizes = {k: v for k, v in CLASSIFIER['backbone'].items() if k != 'type'}
    network = torchvision.models.VisionTransformer(num_classes=5, **sizes)
    torch.nn.init.normal_(network.heads.head.weight)  # torchvision's starts at zero
    return network


def classifier(kind):
    if kind == 'Parts':
        return LibraryClassifier(Parts()).eval()
    if kind == 'torchvision':
        return LibraryClassifier(vit_of_torchvision()).eval()
    head = dict(type='CosineMarginHead', embed_dims=16, num_classes=5)
    model = ImageClassifier(dict(CLASSIFIER['backbone'], type=kind), head).eval()
    model.head.seal([3])
    return model


KINDS = ('VisionTransformer', 'FaceTransformer', 'torchvision', 'Parts')


@pytest.mark.skipif(torch.__version__ < (2, 6), reason='writing ONNX needs torch 2.6')
@pytest.mark.parametrize('kind', ['VisionTransformer', 'torchvision', 'Parts'])
def test_what_is_written_as_onnx(kind):
    """What torch's exporter makes of a classifier, without the packages that write the file."""
    model = classifier(kind)
    reader = onnx_file._READERS['classifier'](model, (16, 16)).eval()
    examples, images = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)
    batch = [{0: torch.export.Dim('batch')}]
    written = torch.export.export(reader, (examples,), dynamic_shapes=batch, strict=False).module()
    torch.testing.assert_close(written(images), model(images)[0])
    (logits,) = reader.expected(model, images)
    assert torch.equal(logits, model(images)[0]) and logits.std() > 0.01


@pytest.mark.parametrize('kind', KINDS)
def test_the_size_of_images_for_onnx(tmp_path, monkeypatch, kind):
    found = []
    packages = dict.fromkeys(onnx_file.NEEDED, True)
    monkeypatch.setattr('importlib.util.find_spec', packages.get)
    monkeypatch.setattr(onnx_file.torch, '__version__', torch.torch_version.TorchVersion('2.6'))
    monkeypatch.setattr(
        onnx_file, '_export', lambda _, size, path: (found.append(size), path.touch())
    )
    if kind == 'Parts':
        with pytest.raises(ForgettingError, match='give --size'):
            write_onnx(classifier(kind), 'classifier', tmp_path / 'a.onnx')
    else:
        write_onnx(classifier(kind), 'classifier', tmp_path / 'a.onnx')
        assert found == [(16, 16)]


@pytest.mark.parametrize('kind', KINDS)
def test_a_classifier_as_onnx(tmp_path, kind):
    """Any number of images, and the logits of PyTorch."""
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    model = classifier(kind)
    assert write_onnx(model, 'classifier', tmp_path / 'a.onnx', (16, 16))
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
