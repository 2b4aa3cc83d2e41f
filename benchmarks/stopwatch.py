"""What is measured of a step: the seconds of each of its parts, and the tensors it holds."""

from __future__ import annotations

import cProfile
import gc
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

OTHER = 'other'
"""The part that everything belongs to which no other part claims."""


def now() -> float:
    """Seconds of a clock, once the GPU, if there is one, has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Parts:
    """Seconds of the parts of a step; what happens in a part within a part counts for the inner.

    Attributes:
        seconds: Part -> seconds so far. Their sum is the time spent in :meth:`running`.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0
        self._wrapped: list[tuple[object, str]] = []
        self._hooks: list[RemovableHandle] = []

    @contextmanager
    def running(self, part: str = OTHER) -> Iterator[None]:
        """Within, time belongs to a part."""
        self._enter(part)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        at = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += at - self._since
        self._since = at

    def watch(self, module: nn.Module | None, part: str, without_grad: str | None = None) -> None:
        """Let forward passes of a module belong to a part, until :meth:`unwrap`.

        Args:
            module: The module; nothing happens with None.
            part: The part.
            without_grad: The part of passes in which no gradients are recorded. Defaults to
                ``part``.
        """
        if module is None:
            return

        def enter(*_) -> None:
            self._enter(part if torch.is_grad_enabled() else without_grad or part)

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(lambda *_: self._leave()))

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Let calls of a method of one object belong to a part, until :meth:`unwrap`.

        Args:
            owner: The object.
            name: Of its method. An object without it is left alone, and one that has it of its
                own, not of its class: it is wrapped already.
            part: The part.
        """
        method = getattr(owner, name, None)
        if method is None or name in vars(owner):
            return

        def timed(*args, **kwargs):
            with self.running(part):
                return method(*args, **kwargs)

        setattr(owner, name, timed)
        self._wrapped.append((owner, name))

    def unwrap(self) -> None:
        """Give every object its own methods back."""
        for handle in self._hooks:
            handle.remove()
        for owner, name in self._wrapped:
            delattr(owner, name)
        self._hooks.clear()
        self._wrapped.clear()


def wrap_step(parts: Parts, plain: nn.Module, method: object, optim_wrapper: object) -> None:
    """Time the parts of a training step with a plain model, a forgetting method and an optimizer.

    A forward pass of a transformer without gradients counts as 'teacher': it is the teacher's, or
    serves it and the student alike. A classifier's backbone counts as encoder.
    """
    detects = hasattr(plain, 'encoder')
    for name in ('backbone', 'neck') if detects else ():
        parts.watch(getattr(plain, name, None), 'trunk')
    parts.watch(plain.encoder if detects else plain.backbone, 'encoder', without_grad='teacher')
    parts.watch(getattr(plain, 'decoder', None), 'decoder', without_grad='teacher')
    head = plain.bbox_head if detects else plain.head
    parts.wrap(getattr(head, 'assigner', None), 'assign', 'matching')
    for owner, name in (
        (head, 'loss_by_feat_single'),
        (head, 'training_logits'),
        (method, 'losses'),
    ):
        parts.wrap(owner, name, 'losses')
    parts.wrap(optim_wrapper, 'backward', 'backward')
    for name in ('step', 'zero_grad'):
        parts.wrap(optim_wrapper, name, 'optimizer')


def seconds_in(profile: cProfile.Profile, word: str) -> float:
    """Seconds a profile saw in functions of files whose name holds a word, and what they called."""

    def inside(code: CodeType | str) -> bool:
        return isinstance(code, CodeType) and word in Path(code.co_filename).name

    return sum(
        call.totaltime
        for entry in profile.getstats()
        if not inside(entry.code)
        for call in entry.calls or ()
        if inside(call.code)
    )


class TensorMemory(TorchDispatchMode):
    """Within, counts the bytes of all tensors that are made, as long as anything holds them.

    Counted are storages, so that views cost nothing and what autograd keeps for the backward pass
    is seen. Scratch space inside one operator is not.

    Args:
        before: Tensors that are there already and count from the beginning.

    Attributes:
        live: Bytes alive now.
        peak: The most there were at one time.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._finalizers: list[weakref.finalize] = []
        for tensor in before:
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for finalizer in self._finalizers:
            finalizer.detach()

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self._finalizers.append(
            weakref.finalize(storage, self._drop, id(storage), storage.nbytes())
        )
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights, buffers, gradients and what the optimizer keeps."""
    kept = [*model.parameters(), *model.buffers()]
    kept += [p.grad for p in model.parameters() if p.grad is not None]
    return kept + [x for x in tree_flatten(dict(optimizer.state))[0] if isinstance(x, Tensor)]


def all_tensors(but: Iterable[Tensor] = ()) -> list[Tensor]:
    """Every tensor that is alive in this process and shares no storage with some others."""
    others = {id(tensor.untyped_storage()) for tensor in but}
    with torch.no_grad():
        found = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    return [
        tensor
        for tensor in found
        if tensor.layout is torch.strided and id(tensor.untyped_storage()) not in others
    ]
