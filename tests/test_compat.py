import inspect
import io
import math
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from torch.autograd import gradcheck
from yapf.yapflib.yapf_api import FormatCode

from mmgslora import compat

REPOSITORY = Path(compat.__file__).parents[1]

stand_in_only = pytest.mark.skipif(compat.has_compiled_mmcv(), reason='mmcv is compiled here')


def run(*arguments, path=(), cwd=None):
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*path, REPOSITORY]))}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
    )


# --- NMS -----------------------------------------------------------------------------------------

# The second box is the lower half of the first. IoU: 9 * 4 / (9 * 9) = 0.444 with offset 0, and
# 10 * 5 / (10 * 10) = 0.5 with offset 1, where the last pixel belongs to the box.
HALF = [[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 4.0], [20.0, 20.0, 29.0, 29.0]]


@pytest.mark.parametrize(
    ('offset', 'threshold', 'kept'),
    [
        (0, 0.44, [2, 0]),
        (0, 0.45, [2, 0, 1]),
        (1, 0.49, [2, 0]),
        (1, 0.5, [2, 0, 1]),  # a box goes when its IoU is above the threshold, not at it
    ],
)
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_nms_by_hand(offset, threshold, kept, dtype):
    from mmcv.ops import nms

    scores = torch.tensor([0.5, 0.25, 0.75], dtype=dtype)
    boxes, indices = nms(torch.tensor(HALF, dtype=dtype), scores, threshold, offset=offset)
    assert indices.tolist() == kept
    assert boxes.tolist() == [[*HALF[index], scores[index].item()] for index in kept]


def test_nms_with_scores_of_another_type_and_with_nothing():
    from mmcv.ops import nms

    boxes, scores = torch.tensor(HALF), torch.tensor([0.5, 0.25, 0.75])
    assert nms(boxes, scores.half(), 0.4)[1].tolist() == [2, 0]
    assert nms(boxes[:0], scores[:0], 0.4)[0].shape == (0, 5)


def test_batched_nms_keeps_classes_apart():
    from mmcv.ops import batched_nms

    boxes = torch.tensor([HALF[0], HALF[0], HALF[1], HALF[2]])
    scores, classes = torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([0, 1, 1, 0])
    found, kept = batched_nms(boxes, scores, classes, {'type': 'nms', 'iou_threshold': 0.4})
    assert kept.tolist() == [1, 3, 0]
    torch.testing.assert_close(found, torch.cat([boxes[kept], scores[kept, None]], dim=1))
    _, kept = batched_nms(boxes, scores, classes, {'iou_threshold': 0.4}, class_agnostic=True)
    assert kept.tolist() == [1, 3]


# --- RoIAlign ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('aligned', 'columns'),
    [
        (True, [0.5, 2.5]),  # two samples a bin, at 0, 1 and at 2, 3
        (False, [1.0, 2.75]),  # at 0.5, 1.5 and at 2.5, 3.5: the last is beyond the image and held
    ],
)
def test_roi_align_by_hand(aligned, columns):
    from mmcv.ops import RoIAlign

    ramp = torch.arange(4.0).expand(1, 1, 4, 4)  # the value of a pixel is its column
    layer = RoIAlign(output_size=2, sampling_ratio=2, aligned=aligned)
    output = layer(ramp, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]))
    torch.testing.assert_close(output, torch.tensor(columns).expand(1, 1, 2, 2))


def rois_and_features(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, 5, 6, generator=generator, dtype=dtype)
    corners = torch.rand(4, 2, generator=generator, dtype=dtype) * 10
    sizes = torch.rand(4, 2, generator=generator, dtype=dtype) * 12 + 0.1
    image = torch.tensor([[0], [1], [1], [0]], dtype=dtype)
    return torch.cat([image, corners, corners + sizes], dim=1), features


def bilinear(plane, y, x):
    """The value between four pixels of a list of rows, as the RoIAlign of Mask R-CNN takes it."""
    height, width = len(plane), len(plane[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    down, right = y - top, x - left
    upper = (1 - right) * plane[top][left] + right * plane[top][left + 1]
    lower = (1 - right) * plane[top + 1][left] + right * plane[top + 1][left + 1]
    return (1 - down) * upper + down * lower


def slow_roi_align(features, rois, size, scale, samples, aligned):
    output = torch.zeros(len(rois), features.shape[1], *size, dtype=features.dtype)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x0, y0, x1, y1 = (corner * scale - 0.5 * aligned for corner in corners)
        low = -math.inf if aligned else 1.0  # the older way widens a RoI to a pixel
        step_y, step_x = max(y1 - y0, low) / size[0], max(x1 - x0, low) / size[1]
        count_y, count_x = samples or math.ceil(step_y), samples or math.ceil(step_x)
        for c, i, j in np.ndindex(features.shape[1], *size):
            plane = features[int(image), c].tolist()
            points = [
                bilinear(plane, y0 + (i + (a + 0.5) / count_y) * step_y, x)
                for a in range(count_y)
                for x in (x0 + (j + (b + 0.5) / count_x) * step_x for b in range(count_x))
            ]
            output[r, c, i, j] = sum(points) / len(points)
    return output


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2])
def test_roi_align_against_loops_and_torchvision(aligned, samples):
    from mmcv.ops import RoIAlign

    rois, features = rois_and_features()
    output = RoIAlign((3, 2), 0.5, samples, aligned=aligned)(features, rois)
    slow = slow_roi_align(features, rois, (3, 2), 0.5, samples, aligned)
    torch.testing.assert_close(output, slow)
    direct = torchvision.ops.roi_align(features, rois, (3, 2), 0.5, samples, aligned)
    torch.testing.assert_close(output, direct)


@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_gradient_is_that_of_finite_differences(aligned):
    from mmcv.ops import RoIAlign

    rois, features = rois_and_features()
    layer = RoIAlign((3, 2), 0.5, 2, aligned=aligned)
    assert gradcheck(lambda x: layer(x, rois), features[:, :1].clone().requires_grad_())


def test_roi_align_in_half_precision_rounds_only_its_result():
    from mmcv.ops import RoIAlign

    rois, features = (tensor.half() for tensor in rois_and_features())
    features.requires_grad_()
    output = RoIAlign((3, 2), 0.5, 2)(features, rois)
    exact = slow_roi_align(features.double(), rois.double(), (3, 2), 0.5, 2, True)
    torch.testing.assert_close(output.double(), exact, rtol=2**-11, atol=1e-6)
    output.sum().backward()
    assert features.grad.dtype == torch.float16
    assert features.grad.abs().sum() > 0


@stand_in_only
def test_roi_align_refuses_max_pooling():
    from mmcv.ops import RoIAlign

    rois, features = rois_and_features()
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*mim install mmcv"):
        RoIAlign(2, pool_mode='max')(features, rois)


# --- focal loss, which MMDetection takes from mmcv on a GPU ---------------------------------------


def test_focal_loss_by_hand():
    from mmcv.ops import sigmoid_focal_loss

    # A logit of 0 is p = 0.5: 0.5^2 * log 2, times alpha for the class and 1 - alpha for others.
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    target = torch.tensor([1, 2])  # 2 is the background of two classes
    loss = sigmoid_focal_loss(torch.zeros(2, 2), target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[negative, positive], [negative, negative]]))
    weights = torch.tensor([1.0, 3.0])
    loss = sigmoid_focal_loss(torch.zeros(1, 2), target[:1], 2.0, 0.25, weights, 'none')
    torch.testing.assert_close(loss, 3 * torch.tensor([[negative, positive]]))


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_focal_loss_gradient_is_that_of_finite_differences(reduction):
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.linspace(-4, 4, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    target = torch.tensor([0, 2, 3, 1])
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, 1.5, 0.3, None, reduction), logits)


def test_focal_loss_is_that_of_mmdetection():
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits = torch.linspace(-30, 30, 12).view(4, 3).requires_grad_()
    target = torch.tensor([0, 2, 3, 1])
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3]
    ours = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    theirs = py_sigmoid_focal_loss(logits, one_hot, reduction='none')
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs.sum(), logits)[0])


# --- deformable attention: the function that mmcv calls on a GPU, here called on the CPU ----------


def attention_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = torch.tensor([[3, 4], [2, 2]])
    starts = torch.tensor([0, 12])
    value = torch.rand(2, 16, 2, 3, generator=generator, dtype=dtype)
    # Off the middles of pixels, where the gradient of the location jumps; some are outside.
    locations = torch.rand(2, 5, 2, 2, 2, 2, generator=generator, dtype=dtype) * 1.2 - 0.1
    weights = torch.rand(2, 5, 2, 2, 2, generator=generator, dtype=dtype)
    return value, shapes, starts, locations, weights


def attention(value, shapes, starts, locations, weights):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


@stand_in_only
def test_attention_by_hand():
    # One query, head and level; two points, in the middle of pixel (row 0, column 1) and between
    # the two pixels of row 1: 0.25 * 2 + 0.75 * (3 + 4) / 2 = 3.125.
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    locations = torch.tensor([[0.75, 0.25], [0.5, 0.75]]).view(1, 1, 1, 1, 2, 2)
    weights = torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 2)
    output = attention(value, torch.tensor([[2, 2]]), torch.tensor([0]), locations, weights)
    torch.testing.assert_close(output, torch.tensor([[[3.125]]]))


@stand_in_only
def test_attention_is_the_pytorch_path_of_mmcv_with_its_gradients():
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, shapes, starts, locations, weights = attention_inputs(torch.float32)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    ours = attention(value, shapes, starts, locations, weights)
    theirs = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(ours, theirs)
    direction = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    for our, their in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction)
    ):
        torch.testing.assert_close(our, their)


@stand_in_only
def test_attention_gradients_are_those_of_finite_differences():
    value, shapes, starts, locations, weights = attention_inputs()
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert gradcheck(lambda v, x, w: attention(v, shapes, starts, x, w), inputs, fast_mode=True)


@stand_in_only
def test_attention_in_half_precision():
    value, shapes, starts, locations, weights = attention_inputs(torch.float16)
    value.requires_grad_()
    output = attention(value, shapes, starts, locations, weights)
    assert output.dtype == torch.float16
    exact = attention(value.double(), shapes, starts, locations.double(), weights.double())
    torch.testing.assert_close(output.double(), exact, rtol=2**-11, atol=1e-6)
    output.sum().backward()
    assert value.grad.dtype == torch.float16

    operator = sys.modules['mmcv._ext'].ms_deform_attn_forward
    with pytest.raises(NotImplementedError, match='no bfloat16.*mmgslora.register'):
        operator(value.bfloat16(), shapes, starts, locations, weights, im2col_step=64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('autocast', [False, True])
def test_attention_layer_on_gpu_is_that_on_cpu(autocast):
    from mmcv.ops import MultiScaleDeformableAttention

    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(32, 4, 2, 2, batch_first=True, dropout=0.0)
    shapes, query = torch.tensor([[3, 4], [2, 2]]), torch.rand(2, 16, 32)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    reference = torch.rand(2, 16, 2, 2)

    def gradient(device):
        layer.zero_grad()
        layer.to(device)
        with torch.autocast('cuda', torch.float16, enabled=autocast and device == 'cuda'):
            output = layer(
                query.to(device),
                reference_points=reference.to(device),
                spatial_shapes=shapes.to(device),
                level_start_index=torch.tensor([0, 12], device=device),
            )
        output.float().square().sum().backward()
        return output.float().cpu(), layer.sampling_offsets.weight.grad.cpu()

    tolerance = {'rtol': 0.05, 'atol': 0.05} if autocast else {'rtol': 1e-3, 'atol': 1e-3}
    torch.testing.assert_close(gradient('cuda'), gradient('cpu'), **tolerance)


# --- the module itself ----------------------------------------------------------------------------


@stand_in_only
def test_other_operators_say_what_is_missing_when_they_are_called():
    import mmdet.models  # noqa: F401  it imports a dozen operators that nobody calls here
    from mmcv.ops import soft_nms

    with pytest.raises(NotImplementedError, match=r"'softnms' needs compiled .*mim install mmcv"):
        soft_nms(torch.tensor(HALF), torch.ones(3))


@stand_in_only
def test_the_stand_in_does_not_pretend():
    from mmcv.utils import collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    extension = sys.modules['mmcv._ext']
    assert not hasattr(extension, '__wrapped__')
    assert not hasattr(extension, '_private')
    with pytest.raises(TypeError, match='built-in module'):  # as for any module without a file
        inspect.getfile(extension)
    assert not mmcv_full_available()
    assert collect_env()['MMCV Compiler'] == 'n/a'


@stand_in_only
def test_a_second_install_changes_nothing():
    extension = sys.modules['mmcv._ext']
    allowed = getattr(torch.serialization, 'get_safe_globals', list)
    before = set(allowed())
    compat.install()
    assert sys.modules['mmcv._ext'] is extension
    assert set(allowed()) == before
    assert not compat.has_compiled_mmcv()


def test_the_text_of_a_config_is_formatted_once(monkeypatch):
    seen = []

    def formatted(text, style_config):
        seen.append((text, style_config))
        return text.upper(), True

    remembered = compat._Remembered(formatted)
    for text in ('a = 1', 'b = 2', 'a = 1'):
        assert remembered(text, style_config=dict(wide=True)) == (text.upper(), True)
    assert seen == [('a = 1', dict(wide=True)), ('b = 2', dict(wide=True))]
    remembered('a = 1', style_config=dict(wide=False))
    assert len(seen) == 3
    monkeypatch.setattr(mmengine_config.FormatCode, '_plain', FormatCode)
    config = Config(dict(a=1))
    before = config.pretty_text
    config.a = 2
    assert (before, config.pretty_text) == ('a = 1\n', 'a = 2\n')


def test_a_compiled_mmcv_on_disk_is_used_untouched(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').write_text('')
    (tmp_path / 'mmcv/_ext.py').write_text("nms = 'compiled'\n")
    program = """
import sys, mmgslora
assert 'mmcv._ext' not in sys.modules
from mmcv import _ext
assert mmgslora.compat.has_compiled_mmcv()
print(_ext.nms, hasattr(_ext, 'softnms'))
"""
    result = run('-c', program, path=[tmp_path])
    assert result.stdout == 'compiled False\n', result.stderr


def test_a_compiled_mmcv_in_memory_is_used_untouched(monkeypatch):
    compiled = types.ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    compat.install()
    assert sys.modules['mmcv._ext'] is compiled
    assert not hasattr(compiled, 'nms')
    assert compat.has_compiled_mmcv()


def test_import_is_light_and_works_where_nothing_is_installed():
    program = """
import sys, mmgslora
print(mmgslora.__version__, {'mmdet', 'mmcv', 'torchvision', 'cv2'} & set(sys.modules))
"""
    assert run('-c', program).stdout == '0.1.0 set()\n'
    program += (
        "print(mmgslora.compat.has_compiled_mmcv(), {'mmcv._ext', 'torch'} & set(sys.modules))"
    )
    result = run('-S', '-c', program)  # -S: no site-packages
    assert result.stdout == '0.1.0 set()\nFalse set()\n', result.stderr


# --- checkpoints ----------------------------------------------------------------------------------


def train_a_little(folder, epochs, resume=False):
    """A run of MMEngine's Runner with one weight, which saves a checkpoint each epoch."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class OneWeight(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, numbers, mode):
            return {'loss': self.weight * numbers.mean()}

    batches = torch.utils.data.DataLoader([(torch.tensor(2.0),)] * 4, batch_size=2)
    runner = Runner(
        OneWeight(),
        str(folder),
        train_dataloader=batches,
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.25}},
        default_hooks={'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        resume=resume,
        log_level='ERROR',
        experiment_name=f'{folder.name}_{epochs}',
    )
    runner.train()
    return runner


def test_a_checkpoint_of_mmengine_loads_safely_and_resumes(tmp_path):
    train_a_little(tmp_path, epochs=1)
    checkpoint = torch.load(tmp_path / 'epoch_1.pth')  # as MMEngine calls it
    assert checkpoint['state_dict'] == {'weight': torch.tensor(0.0)}  # 1 - 2 steps * 0.25 * 2
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert history.data[0].tolist() == [2.0, 1.0]
    assert history.mean() == 1.5

    runner = train_a_little(tmp_path, epochs=2, resume=True)
    assert (runner.epoch, runner.iter) == (2, 4)
    assert runner.model.weight.item() == -1.0
    assert runner.message_hub.get_scalar('train/loss').data[0].tolist() == [2.0, 1.0, 0.0, -1.0]


@pytest.mark.skipif(torch.__version__ < (2, 6), reason='has no safe loading by default')
@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
def test_a_checkpoint_written_under_another_numpy_loads_safely(core):
    from mmengine.logging import HistoryBuffer

    buffer = io.BytesIO()
    content = {'history': HistoryBuffer([1.0, 4.0], [1, 1]), 'best': np.float64(0.5)}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    written, count = re.subn(rb'numpy\._?core(?=\.multiarray\n)', core, buffer.getvalue())
    assert count == 2  # _reconstruct and scalar
    loaded = torch.load(io.BytesIO(written))
    assert loaded['best'] == 0.5
    assert loaded['history'].max() == 4.0


class Attack:
    """Pickles to a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_other_pickles_are_still_refused(tmp_path):
    from mmengine.logging import HistoryBuffer

    harm = tmp_path / 'harm'
    for call in (
        (os.system, f'touch {harm}'),
        (eval, f'open({str(harm)!r}, "w")'),
        (getattr, HistoryBuffer, '__init__'),
        (getattr, HistoryBuffer, 'register_statistics'),
        (getattr, np.ndarray, 'tofile'),
        (np.load, 'any.npy'),
    ):
        torch.save({'weight': torch.ones(1), 'attack': Attack(*call)}, tmp_path / 'attack.pth')
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'attack.pth', weights_only=True)
    assert not harm.exists()


# --- python -m mmgslora.compat --------------------------------------------------------------------

SCRIPT = """
import pathlib, sys
import neighbour
print(__name__, pathlib.Path(__file__).resolve(), sys.argv, sys.path[0], neighbour.__name__)
print(type(sys.modules.get('mmcv._ext')).__module__)
sys.exit(3)
"""


def test_a_script_runs_as_under_python_itself_with_the_stand_in(tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts/script.py').write_text(SCRIPT)
    (tmp_path / 'scripts/neighbour.py').write_text('')
    command = ['scripts/script.py', 'a', '--b', 'c d']
    plain = run(*command, cwd=tmp_path)
    ours = run('-m', 'mmgslora.compat', *command, cwd=tmp_path)
    assert "['scripts/script.py', 'a', '--b', 'c d']" in plain.stdout
    assert ours.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    # Not '__main__': the stand-in is the one of the package.
    stand_in = 'builtins' if compat.has_compiled_mmcv() else 'mmgslora.compat'
    assert ours.stdout.splitlines()[1] == stand_in
    assert (ours.returncode, ours.stderr) == (3, '')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'usage: python -m mmgslora.compat SCRIPT ARGS...\n'),
        (['gone.py', 'a'], "mmgslora.compat: there is no script 'gone.py'.\n"),
        (['.'], "mmgslora.compat: there is no script '.'.\n"),
    ],
)
def test_errors_of_use(arguments, sentence, capsys):
    assert compat.main(arguments) == 2
    assert capsys.readouterr().err == sentence


def test_errors_of_use_are_the_exit_code_of_the_command():
    result = run('-S', '-m', 'mmgslora.compat', 'gone.py')  # -S: no site-packages, so no waiting
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr == "mmgslora.compat: there is no script 'gone.py'.\n"
