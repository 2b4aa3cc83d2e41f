"""What is installed here, how deformable attention will run, and the known traps of this machine.

``python -m mmgslora.env`` prints it and exits with 1 if a trap is left for you to get out of.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable

from . import compat

# One row of the report each; the names in a row are alternatives.
PACKAGES = (
    ('torch',),
    ('torchvision',),
    ('mmcv', 'mmcv-lite'),
    ('mmdet',),
    ('mmengine',),
    ('numpy',),
    (
        'opencv-python',
        'opencv-python-headless',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
    ),
    ('pycocotools',),
    ('setuptools',),
    ('transformers',),  # not needed, but one of the traps needs it
)


@dataclass(frozen=True)
class Machine:
    """What the traps look at.

    Args:
        versions: Names of installed packages to their versions, as from :func:`versions`.
        compiled_mmcv: Whether mmcv has compiled operators.
        mmcv_cuda: The CUDA that they were compiled with, or words like 'not available'.
        mmcv_error: What they said when they were loaded, empty if all is well.
        torchvision_error: What torchvision said when its NMS was called, empty if all is well.
        pkg_resources: Whether ``pkg_resources`` can be imported.
        gpu: The names of the GPUs that torch can use, empty if there is none.
    """

    versions: Mapping[str, str]
    compiled_mmcv: bool = True
    mmcv_cuda: str = ''
    mmcv_error: str = ''
    torchvision_error: str = ''
    pkg_resources: bool = True
    gpu: str = ''

    def version(self, *names: str) -> tuple[int, ...]:
        """The first three numbers of the first installed of some packages, () if there is none."""
        for name in names:
            if name in self.versions:
                return tuple(int(part) for part in re.findall(r'\d+', self.versions[name])[:3])
        return ()


@dataclass(frozen=True)
class Trap:
    """A known way for today's packages not to work together.

    Args:
        name: What is wrong, in the words of the report.
        caught: Whether a machine is in it.
        cure: What to do, or what mmgslora has done.
        handled: Whether mmgslora has done all that most users need.
    """

    name: str
    caught: Callable[[Machine], bool]
    cure: str
    handled: bool = False


TRAPS = (
    Trap(
        'mmcv >= 2.2 with mmdet 3.3, which asserts that mmcv is older',
        lambda m: m.version('mmcv', 'mmcv-lite') >= (2, 2) and m.version('mmdet')[:2] == (3, 3),
        'Install mmcv 2.1.0 or mmcv-lite 2.1.0.',
    ),
    Trap(
        'both mmcv and mmcv-lite installed, each over the files of the other',
        lambda m: {'mmcv', 'mmcv-lite'} <= set(m.versions),
        'Uninstall both, then install the one you want.',
    ),
    Trap(
        'mmcv without compiled operators',
        lambda m: bool(m.version('mmcv', 'mmcv-lite')) and not m.compiled_mmcv,
        'Deformable attention, NMS, RoIAlign and the sigmoid focal loss run in PyTorch instead. '
        'For other operators, or for speed, install a compiled mmcv that fits your torch.',
        handled=True,
    ),
    Trap(
        'an mmcv compiled for numpy 1 with numpy 2',
        lambda m: m.version('numpy') >= (2,) and 'numpy' in m.mmcv_error.lower(),
        "Install 'numpy<2', or compile mmcv against numpy 2.",
    ),
    Trap(
        'a compiled mmcv that does not load, most often one for another torch',
        lambda m: bool(m.mmcv_error) and 'numpy' not in m.mmcv_error.lower(),
        'Install the mmcv that was compiled for your torch, or uninstall it and take mmcv-lite.',
    ),
    Trap(
        'an mmcv compiled without CUDA on a machine with a GPU',
        lambda m: bool(m.gpu) and 'not available' in m.mmcv_cuda,
        'Install an mmcv compiled with CUDA, or uninstall it and take mmcv-lite.',
    ),
    Trap(
        'torchvision that does not import or lacks its operators',
        lambda m: bool(m.torchvision_error),
        'Install the torchvision that belongs to your torch, from the same source (pip, conda, '
        'CPU or CUDA).',
    ),
    Trap(
        'torch >= 2.6, whose safe loading refuses the checkpoints of mmengine <= 0.10.7',
        lambda m: m.version('torch') >= (2, 6) and () < m.version('mmengine') <= (0, 10, 7),
        'mmgslora allows the classes that these checkpoints hold, and nothing else.',
        handled=True,
    ),
    Trap(
        'no pkg_resources, which setuptools dropped in 82 and mmengine <= 0.10.7 imports',
        lambda m: not m.pkg_resources and () < m.version('mmengine') <= (0, 10, 7),
        "Install 'setuptools<82'.",
    ),
    Trap(
        'torch >= 2.5 and transformers with mmengine <= 0.10.5, which registers Adafactor twice',
        lambda m: (
            m.version('torch') >= (2, 5)
            and 'transformers' in m.versions
            and () < m.version('mmengine') <= (0, 10, 5)
        ),
        "Install 'mmengine>=0.10.6', or uninstall transformers.",
    ),
)


def traps(machine: Machine) -> list[Trap]:
    """The known traps that a machine is in."""
    return [trap for trap in TRAPS if trap.caught(machine)]


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that matter here and are installed.

    Returns:
        Distribution names to versions, such as ``{'python': '3.11.4', 'torch': '2.1.0+cu118'}``.
    """
    found = {'python': platform.python_version()}
    for name in (name for row in PACKAGES for name in row):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def this_machine() -> Machine:
    """Looks at the machine it runs on, which loads torch, torchvision and a compiled mmcv."""
    compiled = compat.has_compiled_mmcv()
    mmcv_error = _error_of(_load_operators) if compiled else ''
    built = compiled and not mmcv_error
    return Machine(
        versions=versions(),
        compiled_mmcv=compiled,
        mmcv_cuda=sys.modules[compat.EXTENSION].get_compiling_cuda_version() if built else '',
        mmcv_error=mmcv_error,
        torchvision_error=_error_of(_call_nms) if _is_there('torchvision') else '',
        pkg_resources=_is_there('pkg_resources'),
        gpu=_gpu_names() if _is_there('torch') else '',
    )


def attention_path(machine: Machine) -> str:
    """Which code deformable attention will run."""
    if not machine.version('mmcv', 'mmcv-lite'):
        return 'none, mmcv is not installed'
    if not machine.gpu:
        return 'PyTorch path on CPU'
    return 'compiled CUDA operator' if machine.compiled_mmcv else 'PyTorch path on GPU'


def report(machine: Machine) -> str:
    """The text that ``python -m mmgslora.env`` prints."""
    rows = [('python', machine.versions['python'])]
    for names in PACKAGES:
        installed = [name for name in names if name in machine.versions]
        rows += [(name, machine.versions[name]) for name in installed]
        rows += [] if installed else [(names[0], 'not installed')]
    rows += [('GPU', machine.gpu or 'none'), ('deformable attention', attention_path(machine))]
    lines = [f'{name:<32}{value}' for name, value in rows] + ['', 'Known traps']

    caught = traps(machine)
    for trap in TRAPS:
        if trap not in caught:
            lines.append(f'  no       {trap.name}')
            continue
        lines.append(f'  {"handled" if trap.handled else "TO DO":<9}{trap.name}')
        lines += textwrap.wrap(trap.cure, 99, initial_indent=' ' * 13, subsequent_indent=' ' * 13)
    if machine.mmcv_error:
        lines += ['', f'mmcv said: {machine.mmcv_error}']
    if machine.torchvision_error:
        lines += ['', f'torchvision said: {machine.torchvision_error}']
    return '\n'.join(lines)


def main() -> int:
    """Prints the report.

    Returns:
        The exit code: 1 if this machine is in a trap that mmgslora does not handle.
    """
    machine = this_machine()
    print(report(machine))
    return int(any(not trap.handled for trap in traps(machine)))


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:  # of whatever kind: it goes into the report
        return f'{type(error).__name__}: {error}'
    return ''


def _load_operators() -> None:
    import torch  # noqa: F401  they are linked against its libraries

    importlib.import_module(compat.EXTENSION)


def _call_nms() -> None:
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def _gpu_names() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ', '.join(torch.cuda.get_device_name(index) for index in range(count))


if __name__ == '__main__':
    sys.exit(main())
