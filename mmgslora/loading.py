"""Reads checkpoints and result files without running what they may name.

A pickle can call any function. torch's safe loader builds tensors and plain values only; it is the
default from torch 2.6 on, and this module makes it the one that MMEngine's ``CheckpointLoader``
uses on every version, wherever the file comes from: importing it is enough. Before torch 2.6, whose
safe loader cannot read MMEngine's log history, an unpickler that knows the same few names does it.
"""

from __future__ import annotations

import _codecs
import io
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmgslora.compat import history_statistic
from mmgslora.errors import ForgettingError

_torch_load = torch.load
_reconstruct, _scalar = np.zeros(1).__reduce__()[0], np.float64().__reduce__()[0]


def safe_load(file: Any, map_location: Any = None, **_: Any) -> Any:
    """``torch.load`` of tensors and plain values, whatever its default or the caller wants.

    Args:
        file: A path, or an open binary file.
        map_location: As for ``torch.load``.

    Raises:
        pickle.UnpicklingError: The file names anything else.
    """
    if torch.__version__ >= (2, 6):
        return _torch_load(file, map_location=map_location, weights_only=True)
    return load_restricted(file, map_location)


def load_restricted(file: Any, map_location: Any = None) -> Any:
    """What :func:`safe_load` does where torch's own safe loader cannot read MMEngine's files."""
    return _torch_load(
        file, map_location=map_location, pickle_module=_PICKLE, weights_only=False, mmap=False
    )


@contextmanager
def safe_loading() -> Iterator[None]:
    """Within, every ``torch.load`` is :func:`safe_load`."""
    before, torch.load = torch.load, safe_load
    try:
        yield
    finally:
        torch.load = before


def read_checkpoint(path: str, what: str = 'The checkpoint') -> dict[str, Any]:
    """A checkpoint file, on the CPU.

    Args:
        path: A local file (~ is the home folder), or an address that MMEngine knows.
        what: What the file is, for errors.

    Raises:
        ForgettingError: There is no such file, it cannot be read, or it is no checkpoint.
    """
    path = _in_home(str(path))
    name = f'{what} {path!r}'
    if '://' not in path:
        if Path(path).is_dir():
            raise ForgettingError(f'{name} is a folder; name the file in it.')
        if not Path(path).is_file():
            raise ForgettingError(f'{name} does not exist; give the path of a .pth file.')
    try:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except Exception as error:  # bytes that are no checkpoint fail in nearly every way there is
        why = ' '.join(str(error).split())
        unsafe = 'Weights only load failed' in why or isinstance(error, pickle.UnpicklingError)
        if unsafe and ('GLOBAL' in why or 'not allowed' in why):
            reason = 'names code to run, which is never done; take a file of tensors'
        else:
            reason = f'is cut off or no checkpoint ({type(error).__name__}); take a whole copy'
        raise ForgettingError(f'{name} cannot be read: it {reason}.') from error
    if not isinstance(content, Mapping):
        raise ForgettingError(f'{name} holds a {type(content).__name__} and no checkpoint.')
    return content


def local_path(path: str) -> str:
    """Where a checkpoint lies once MMEngine has loaded it.

    Args:
        path: A path, or an address.

    Returns:
        str: For http and https the file in torch's cache, which need not be there yet; anything
        else as it is, below the home folder where it begins with ~.
    """
    address = urlparse(path)
    if address.scheme not in ('http', 'https'):
        return _in_home(path)
    return str(Path(torch.hub.get_dir(), 'checkpoints', PurePosixPath(address.path).name))


def _in_home(path: str) -> str:
    """A path that begins with ~ as MMEngine reads it, any other as it is."""
    return str(Path(path).expanduser()) if path.startswith('~') else path


def read_results(path: str) -> Any:
    """The content of a result file (``.pkl``) of MMDetection's ``tools/test.py --out``.

    Raises:
        ForgettingError: There is no such file, or it holds anything but lists, dicts, numbers,
            text, arrays and tensors.
    """
    if not Path(path).is_file():
        raise ForgettingError(
            f'Result file {str(path)!r} does not exist; make it with --out of tools/test.py.'
        )
    try:
        with Path(path).open('rb') as file:
            return _Unpickler(file).load()
    except Exception as error:
        raise ForgettingError(
            f'Result file {str(path)!r} cannot be read ({" ".join(str(error).split())}); make it '
            'with --out of tools/test.py.'
        ) from error


def _storage(data: bytes) -> Any:
    """A tensor's storage in a plain pickle, where torch itself would unpickle anything."""
    return safe_load(io.BytesIO(data))


def _allowed() -> dict[tuple[str, str], Any]:
    known: dict[tuple[str, str], Any] = {
        ('collections', 'OrderedDict'): OrderedDict,
        ('builtins', 'set'): set,
        ('builtins', 'bytearray'): bytearray,
        ('builtins', 'getattr'): history_statistic,
        ('_codecs', 'encode'): _codecs.encode,
        ('mmengine.logging.history_buffer', 'HistoryBuffer'): HistoryBuffer,
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
        ('torch', 'Size'): torch.Size,
        ('torch', 'device'): torch.device,
        ('torch.nn.parameter', 'Parameter'): torch.nn.Parameter,
        ('torch.storage', 'UntypedStorage'): torch.UntypedStorage,
        ('torch.storage', 'TypedStorage'): torch.storage.TypedStorage,
        ('torch.storage', '_load_from_bytes'): _storage,
    }
    for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
        known['torch._utils', name] = getattr(torch._utils, name)
    for core in ('core', '_core'):  # numpy 1 and 2 write different names for one function
        known[f'numpy.{core}.multiarray', '_reconstruct'] = _reconstruct
        known[f'numpy.{core}.multiarray', 'scalar'] = _scalar
    return known


_ALLOWED = _allowed()
_OLD_MODULES = {'__builtin__': 'builtins'}


class _Unpickler(pickle.Unpickler):
    """Finds the few names that checkpoints and result files need, and no other."""

    def find_class(self, module: str, name: str) -> Callable:
        module = _OLD_MODULES.get(module, module)
        found = _ALLOWED.get((module, name))
        if found is None and module == 'torch':
            known = getattr(torch, name, None)
            if isinstance(known, torch.dtype) or name.endswith('Storage'):
                found = known
        if found is None:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed in a file that is read')
        return found


def _load(file: Any, **how: Any) -> Any:
    return _Unpickler(file, **how).load()


_PICKLE = types.SimpleNamespace(
    __name__='mmgslora.loading',
    Unpickler=_Unpickler,
    load=_load,
    UnpicklingError=pickle.UnpicklingError,
)


def _use_for_mmengine() -> None:
    theirs = CheckpointLoader.load_checkpoint.__func__

    def load_checkpoint(
        cls: type, filename: str, map_location: Any = None, logger: str = 'current'
    ) -> Any:
        with safe_loading():
            return theirs(cls, filename, map_location, logger)

    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


_use_for_mmengine()
