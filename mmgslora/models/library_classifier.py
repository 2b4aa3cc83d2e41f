"""Classifiers of other libraries as they are: torchvision's, timm's, mmpretrain's, your own."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from mmgslora.errors import ForgettingError
from mmgslora.models.classifier import Classifier, one_size
from mmgslora.models.vision_transformer import downloading, weights_entry
from mmgslora.settings import Count, checked, nearest


@MODELS.register_module()
class LibraryClassifier(Classifier):
    """Any network that ends in a Linear: logits are what it gives, embeddings what it reads.

    The parts of the network are this model's own parts, under their own names. So a checkpoint of
    the plain network loads as it is, and what is saved, merged checkpoints and adapters alike,
    loads into the plain network. It trains with the cross-entropy of its logits.

    Args:
        net: Config of the network for MMEngine's registry: a registered class, or the import path
            of a class or a function, e.g. ``dict(type='torchvision.models.resnet18')``; with
            ``_scope_='mmpretrain'`` a class of mmpretrain. Or a built network. Called with images
            (n, 3, H, W) it must give logits (n, C), or something with ``logits``.
        last: Name of the last Linear, such as 'heads.head'. Defaults to None: the last one among
            the network's modules.
        data_preprocessor: As in MMEngine. Defaults to None: only moves the batch to the device,
            for the data set's transforms normalise the images.
        init_cfg: As in MMEngine. Defaults to None.

    Attributes:
        plain: The plain network.

    Raises:
        ForgettingError: The network cannot be built or has no such Linear; or, when it is called,
            its output is not what that Linear gives.
    """

    @checked
    def __init__(
        self,
        net: Mapping | nn.Module,
        last: str | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | Sequence | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        network = net if isinstance(net, nn.Module) else _from_config(net)
        network.data_preprocessor = self.data_preprocessor
        # One dictionary of parts, so that a part that is replaced is so in both. The network
        # itself is no part: its name would be in every key.
        self.__dict__['plain'] = network
        for parts in ('_parameters', '_buffers', '_non_persistent_buffers_set', '_modules'):
            self.__dict__[parts] = network.__dict__[parts]
        self._last = _last_linear(network, last)
        self.may_be_trained = True  # nobody knows what a function of another library loads

    @property
    def num_classes(self) -> int:
        return self.class_layer.out_features

    @property
    def class_layer(self) -> nn.Linear:
        """See :class:`Classifier`."""
        return self.plain.get_submodule(self._last)

    def read(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Classifier`."""
        calls = []

        def note(_: nn.Module, given: tuple[Tensor], logits: Tensor) -> None:
            calls.append((logits, given[0]))

        handle = self.class_layer.register_forward_hook(note)
        try:
            output = self.plain(one_size(inputs, self.plain))
        finally:
            handle.remove()
        output = getattr(output, 'logits', output)
        if len(calls) != 1 or not _same(output, calls[0][0]) or output.dim() != 2:
            raise ForgettingError(
                f'The output of {type(self.plain).__name__} is not what its Linear '
                f'{self._last!r} gives, called once with one row per image; name in last the '
                'Linear that gives it, or take a network with a single head.'
            )
        return calls[0]

    def train(self, mode: bool = True) -> LibraryClassifier:
        super().train(mode)
        self.plain.training = mode
        return self

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names, or let a network of OpenMMLab initialise itself."""
        if self.init_cfg is not None:
            super().init_weights()
        elif isinstance(self.plain, BaseModule):
            self.plain.init_weights()


@MODELS.register_module()
class TorchvisionClassifier(LibraryClassifier):
    """A classifier of torchvision, e.g. ``dict(type='TorchvisionClassifier', name='vit_b_16')``.

    Args:
        name: As in ``torchvision.models.list_models()``, such as 'vit_b_16' or 'resnet18'.
        weights: Name of published weights, such as 'IMAGENET1K_V1' or 'DEFAULT', which are
            loaded at once and need a network the first time. They are for images as their
            ``transforms()`` make them. Defaults to None: random.
        num_classes: C. With weights of another number of classes the head is a fresh one, and
            nothing is known before it is trained. Defaults to None: the 1000 of ImageNet.
        last: See :class:`LibraryClassifier`. Defaults to None.
        data_preprocessor: See :class:`LibraryClassifier`. Defaults to None.
        init_cfg: See :class:`LibraryClassifier`. Defaults to None.
        **settings: Of the model itself, e.g. ``image_size=64`` or ``dropout=0.1``.

    Raises:
        ForgettingError: torchvision has no such model or weights, a setting is not possible, or
            the weights cannot be had.
    """

    @checked
    def __init__(
        self,
        name: str,
        weights: str | None = None,
        num_classes: Count | None = None,
        last: str | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | Sequence | None = None,
        **settings: Any,
    ) -> None:
        _check_name('torchvision', name, list_models(module=torchvision.models))
        if num_classes is not None and weights is None:
            settings['num_classes'] = num_classes
        network = _built(name, _from_torchvision, name, weights, **settings)
        fresh = _give_rows(network, num_classes)
        super().__init__(network, last, data_preprocessor, init_cfg)
        self.is_pretrained = weights is not None and not fresh
        self.may_be_trained = weights is not None


@MODELS.register_module()
class TimmClassifier(LibraryClassifier):
    """A classifier of timm, which must be installed (``pip install mmgslora[timm]``).

    Args:
        name: As in ``timm.list_models()``, such as 'vit_tiny_patch16_224'.
        weights: Tag of published weights, such as 'augreg_in21k_ft_in1k', which are loaded at
            once and need a network the first time. How their images are normalised is in
            ``timm.data.resolve_model_data_config``. Defaults to None: random.
        num_classes: As for :class:`TorchvisionClassifier`. Defaults to None: timm's own, for most
            models the 1000 of ImageNet.
        last: See :class:`LibraryClassifier`. Defaults to None.
        data_preprocessor: See :class:`LibraryClassifier`. Defaults to None.
        init_cfg: See :class:`LibraryClassifier`. Defaults to None.
        **settings: Of ``timm.create_model``, e.g. ``img_size=64``.

    Raises:
        ForgettingError: timm is not installed, it has no such model or weights, a setting is not
            possible, or the weights cannot be had.
    """

    @checked
    def __init__(
        self,
        name: str,
        weights: str | None = None,
        num_classes: Count | None = None,
        last: str | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | Sequence | None = None,
        **settings: Any,
    ) -> None:
        _check_installed('timm')
        timm = import_module('timm')
        _check_name('timm', name, timm.list_models())
        tagged = name
        if weights is not None:
            tags = [known.partition('.')[2] for known in timm.list_pretrained(f'{name}.*')]
            if weights not in tags:
                raise ForgettingError(
                    f'timm has no weights {weights!r} of {name}{nearest(weights, tags)}.'
                )
            tagged = f'{name}.{weights}'
        settings |= dict(num_classes=num_classes, pretrained=weights is not None)
        network = _built(name, timm.create_model, tagged, **settings)
        if not network.num_classes:
            raise ForgettingError(f'{name} of timm comes without a head; set num_classes.')
        super().__init__(network, last, data_preprocessor, init_cfg)
        published = network.pretrained_cfg.get('num_classes')
        self.is_pretrained = weights is not None and self.num_classes == published


def _from_config(net: Mapping) -> nn.Module:
    kind, scope = net.get('type'), net.get('_scope_')
    if scope is not None:
        _check_imported(scope)
    with MODELS.switch_scope_and_registry(scope) as registry:
        if not callable(kind) and (not isinstance(kind, str) or registry.get(kind) is None):
            raise ForgettingError(
                f'net.type is {kind!r}, which is neither registered nor the import path of a class '
                'or a function.'
            )
    network = _built(kind, MODELS.build, copy.deepcopy(dict(net)))
    if not isinstance(network, nn.Module):
        raise ForgettingError(
            f'net.type {kind!r} gives a {type(network).__name__}, which is no torch.nn.Module.'
        )
    return network


def _from_torchvision(name: str, weights: str | None, **settings: Any) -> nn.Module:
    if weights is None:
        return get_model(name, weights=None, **settings)
    entry = weights_entry(name, weights)
    with downloading(entry):
        return get_model(name, weights=entry, **settings)


def _give_rows(network: nn.Module, num_classes: int | None) -> bool:
    """Whether the last Linear had other rows than asked for, and was replaced by a fresh one."""
    name = _last_linear(network, None)
    layer = network.get_submodule(name)
    if num_classes in (None, layer.out_features):
        return False
    fresh = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
    parent, _, own = name.rpartition('.')
    setattr(network.get_submodule(parent), own, fresh)
    return True


def _built(what: object, build: Callable, *args: Any, **settings: Any) -> Any:
    try:
        return build(*args, **settings)
    except ForgettingError:
        raise
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ForgettingError(f'{what} cannot be built: {" ".join(str(error).split())}') from error


def _check_installed(library: str) -> None:
    if find_spec(library) is None:
        raise ForgettingError(f'{library} is not installed; pip install {library}.')


def _check_imported(scope: str) -> None:
    """MMEngine would go on with its own registry, where a class of ours may have the same name."""
    try:
        if scope not in MODELS.children:
            _check_installed(scope)
            import_module(f'{scope}.registry')
        if scope in MODELS.children:
            MODELS.children[scope].import_from_location()
    except ImportError as error:
        raise ForgettingError(f'{scope} is installed and cannot be imported: {error}') from error


def _check_name(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
        meant = f'; did you mean {" or ".join(near)}?' if near else '.'
        raise ForgettingError(f'{library} has no classifier {name!r} among {len(names)}{meant}')


def _last_linear(network: nn.Module, last: str | None) -> str:
    linears = [name for name, x in network.named_modules() if isinstance(x, nn.Linear)]
    if not linears:
        raise ForgettingError(
            f'{type(network).__name__} has no Linear; a classifier must end in one, whose rows '
            'are its classes.'
        )
    if last not in (None, *linears):
        raise ForgettingError(
            f'last is {last!r}, which is no Linear of {type(network).__name__}'
            f'{nearest(last, linears)}.'
        )
    return last or linears[-1]


def _same(one: Any, other: Tensor) -> bool:
    return one is other or (isinstance(one, Tensor) and torch.equal(one, other))
