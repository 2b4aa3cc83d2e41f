"""What is installed here, how deformable attention will run, and the known issues of this machine.

``python -m mmgslora.env`` prints it and exits with 1 if an issue is left for you to fix.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    # Not needed, but known issues are about them.
    ('transformers',),
    ('mmpretrain',),
)


# Of what collect_env says: versions are among the packages, the rest is long or says nothing.
_SAID_ELSEWHERE = (
    'Python',
    'PyTorch',
    'TorchVision',
    'OpenCV',
    'MMEngine',
    'GPU ',
    'MUSA',
    'numpy',
)


@dataclass(frozen=True)
class Environment:
    """What the known issues look at.

    Args:
        versions: Names of installed packages to their versions, as from :func:`versions`.
        compiled_mmcv: Whether mmcv has compiled operators.
        mmcv_cuda: The CUDA that they were compiled with, or words like 'not available'.
        mmcv_error: What they said when they were loaded, empty if all is well.
        torchvision_error: What torchvision said when its NMS was called, empty if all is well.
        pkg_resources: Whether ``pkg_resources`` can be imported.
        gpu: The names of the GPUs that torch can use, empty if there is none.
        system: Whatever else MMEngine's ``collect_env`` says, such as platform and compilers.
    """

    versions: Mapping[str, str]
    compiled_mmcv: bool = True
    mmcv_cuda: str = ''
    mmcv_error: str = ''
    torchvision_error: str = ''
    pkg_resources: bool = True
    gpu: str = ''
    system: Mapping[str, str] = field(default_factory=dict)

    def version(self, *names: str) -> tuple[int, ...]:
        """The first three numbers of the first installed of some packages, () if there is none."""
        for name in names:
            if name in self.versions:
                return tuple(int(part) for part in re.findall(r'\d+', self.versions[name])[:3])
        return ()


@dataclass(frozen=True)
class KnownIssue:
    """A known way for today's packages not to work together.

    Args:
        name: What is wrong, in the words of the report.
        applies: Whether an environment has it.
        fix: What to do, or what mmgslora has done.
        handled: Whether mmgslora has done all that most users need.
    """

    name: str
    applies: Callable[[Environment], bool]
    fix: str
    handled: bool = False


KNOWN_ISSUES = (
    KnownIssue(
        'mmcv >= 2.2 with mmdet 3.3, which asserts that mmcv is older',
        lambda m: m.version('mmcv', 'mmcv-lite') >= (2, 2) and m.version('mmdet')[:2] == (3, 3),
        'Install mmcv 2.1.0 or mmcv-lite 2.1.0.',
    ),
    KnownIssue(
        'both mmcv and mmcv-lite installed, each over the files of the other',
        lambda m: {'mmcv', 'mmcv-lite'} <= set(m.versions),
        'Uninstall both, then install the one you want.',
    ),
    KnownIssue(
        'mmcv without compiled operators',
        lambda m: bool(m.version('mmcv', 'mmcv-lite')) and not m.compiled_mmcv,
        'Deformable attention, NMS, RoIAlign and the sigmoid focal loss run in PyTorch instead. '
        'For other operators, or for speed, install a compiled mmcv that fits your torch.',
        handled=True,
    ),
    KnownIssue(
        'an mmcv compiled for numpy 1 with numpy 2',
        lambda m: m.version('numpy') >= (2,) and 'numpy' in m.mmcv_error.lower(),
        "Install 'numpy<2', or compile mmcv against numpy 2.",
    ),
    KnownIssue(
        'a compiled mmcv that does not load, most often one for another torch',
        lambda m: bool(m.mmcv_error) and 'numpy' not in m.mmcv_error.lower(),
        'Install the mmcv that was compiled for your torch, or uninstall it and take mmcv-lite.',
    ),
    KnownIssue(
        'an mmcv compiled without CUDA on a machine with a GPU',
        lambda m: bool(m.gpu) and 'not available' in m.mmcv_cuda,
        'Install an mmcv compiled with CUDA, or uninstall it and take mmcv-lite.',
    ),
    KnownIssue(
        'torchvision that does not import or lacks its operators',
        lambda m: bool(m.torchvision_error),
        'Install the torchvision that belongs to your torch, from the same source (pip, conda, '
        'CPU or CUDA).',
    ),
    KnownIssue(
        'torch >= 2.6, whose safe loading refuses the checkpoints of mmengine <= 0.10.7',
        lambda m: m.version('torch') >= (2, 6) and () < m.version('mmengine') <= (0, 10, 7),
        'mmgslora allows the classes that these checkpoints hold, and nothing else.',
        handled=True,
    ),
    KnownIssue(
        'no pkg_resources, which setuptools dropped in 82 and mmengine <= 0.10.7 imports',
        lambda m: not m.pkg_resources and () < m.version('mmengine') <= (0, 10, 7),
        "Install 'setuptools<82'.",
    ),
    KnownIssue(
        'torch >= 2.5 and transformers with mmengine <= 0.10.5, which registers Adafactor twice',
        lambda m: (
            m.version('torch') >= (2, 5)
            and 'transformers' in m.versions
            and () < m.version('mmengine') <= (0, 10, 5)
        ),
        "Install 'mmengine>=0.10.6', or uninstall transformers.",
    ),
    KnownIssue(
        'mmpretrain <= 1.2.0 with transformers >= 4.52, beside which it does not import',
        lambda m: (
            m.version('transformers') >= (4, 52) and () < m.version('mmpretrain') <= (1, 2, 0)
        ),
        "Install 'transformers<4.52', or uninstall one of the two. From transformers 4.56 on "
        'MMDetection, which imports mmpretrain where it is installed, does not import either.',
    ),
)


def known_issues(environment: Environment) -> list[KnownIssue]:
    """The known issues that an environment has."""
    return [issue for issue in KNOWN_ISSUES if issue.applies(environment)]


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


def this_environment() -> Environment:
    """Looks at the machine it runs on, which loads torch, torchvision and a compiled mmcv."""
    compiled = compat.has_compiled_mmcv()
    collected = _collected()
    mmcv_error = _error_of(_load_operators) if compiled else ''
    built = compiled and not mmcv_error
    return Environment(
        versions=versions(),
        compiled_mmcv=compiled,
        mmcv_cuda=sys.modules[compat.EXTENSION].get_compiling_cuda_version() if built else '',
        mmcv_error=mmcv_error,
        torchvision_error=_error_of(_call_nms) if _is_there('torchvision') else '',
        pkg_resources=_is_there('pkg_resources'),
        gpu=', '.join(value for key, value in collected.items() if key.startswith('GPU ')),
        system={k: v for k, v in collected.items() if not k.startswith(_SAID_ELSEWHERE)},
    )


def attention_path(environment: Environment) -> str:
    """Which code deformable attention will run."""
    if not environment.version('mmcv', 'mmcv-lite'):
        return 'none, mmcv is not installed'
    if not environment.gpu:
        return 'PyTorch path on CPU'
    return 'compiled CUDA operator' if environment.compiled_mmcv else 'PyTorch path on GPU'


def report(environment: Environment) -> str:
    """The text that ``python -m mmgslora.env`` prints."""
    rows = [('python', environment.versions['python'])]
    for names in PACKAGES:
        installed = [name for name in names if name in environment.versions]
        rows += [(name, environment.versions[name]) for name in installed]
        rows += [] if installed else [(names[0], 'not installed')]
    rows.append(('GPU', environment.gpu or 'none'))
    rows.append(('deformable attention', attention_path(environment)))
    rows += environment.system.items()
    lines = [f'{name:<32}{value}' for name, value in rows] + ['', 'Known issues']

    found = known_issues(environment)
    for issue in KNOWN_ISSUES:
        if issue not in found:
            lines.append(f'  no       {issue.name}')
            continue
        lines.append(f'  {"handled" if issue.handled else "TO DO":<9}{issue.name}')
        lines += textwrap.wrap(issue.fix, 99, initial_indent=' ' * 13, subsequent_indent=' ' * 13)
    if environment.mmcv_error:
        lines += ['', f'mmcv said: {environment.mmcv_error}']
    if environment.torchvision_error:
        lines += ['', f'torchvision said: {environment.torchvision_error}']
    return '\n'.join(lines)


def main() -> int:
    """Prints the report.

    Returns:
        The exit code: 1 if this machine has an issue that mmgslora does not handle.
    """
    environment = this_environment()
    print(report(environment))
    return int(any(not issue.handled for issue in known_issues(environment)))


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


def _collected() -> dict[str, str]:
    if not (_is_there('mmengine') and _is_there('torch')):
        return {}
    try:
        from mmengine.utils.dl_utils import collect_env

        return {name: str(value) for name, value in collect_env().items()}
    except Exception as error:  # one of the issues below, which says more
        return {'collect_env': f'{type(error).__name__}: {error}'}


if __name__ == '__main__':
    sys.exit(main())
