"""What a setting may be is said once, in the signature of the class that has it.

The annotations of an ``__init__`` are read here and by whoever lists settings: a type, a
``Literal`` of choices, or one of the ranges below. :func:`checked` refuses what does not fit when
the object is built, :func:`problems` lists it for a config that is not built yet.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmengine.registry import Registry
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mmgslora.errors import ForgettingError

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description='a number from 0 up')]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description='a number above 0')]
Share = Annotated[float, Field(ge=0, le=1, description='a number from 0 to 1')]
PositiveShare = Annotated[float, Field(gt=0, le=1, description='a number above 0, at most 1')]
Count = Annotated[int, Field(ge=1, description='a whole number from 1 up')]
NonNegativeCount = Annotated[int, Field(ge=0, description='a whole number from 0 up')]
PerTask = Annotated[
    NonNegative | Annotated[Sequence[NonNegative], Field(min_length=1)],
    Field(description='a number from 0 up, or a list of them, one per task'),
]
SharePerTask = Annotated[
    Share | Annotated[Sequence[Share], Field(min_length=1)],
    Field(description='a number from 0 to 1, or a list of them, one per task'),
]

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)
_PLAIN = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'text'}
_PLAIN |= {dict: 'a dict', list: 'a list', tuple: 'a list', type(None): 'None'}


def checked(init: Callable) -> Callable:
    """Decorate an ``__init__``: a setting that is not what its annotation says is refused.

    Raises:
        ForgettingError: From the decorated function; one sentence per setting, all of them.
    """

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(init).bind_partial(self, *args, **kwargs).arguments
        names = list(given)[1:]
        wrong = wrong_values(init, {name: given[name] for name in names}, type(self).__name__)
        if wrong:
            raise ForgettingError(' '.join(wrong))
        init(self, *args, **kwargs)

    return wrapper


def problems(
    cls: type, given: Mapping[str, Any], where: str, supplied: Iterable[str] = ()
) -> list[str]:
    """What is wrong with a config of a class: unknown, missing and impossible settings.

    Args:
        cls: The class that would be built.
        given: Its settings, without ``type``.
        where: What they are settings of, as a user would find it, e.g. 'model.method'.
        supplied: Parameters that are no settings: the class gets them from whoever builds it.
            Defaults to none.

    Returns:
        One sentence each.
    """
    inits = _inits(cls)
    allowed = {name: init for init in reversed(inits) for name in _parameters(init)}
    allowed = {name: init for name, init in allowed.items() if name not in supplied}
    wrong = unknown_names(given, allowed, where)
    for name, init in allowed.items():
        needed = _parameters(init)[name].default is inspect.Parameter.empty
        if name in given:
            wrong += wrong_values(init, {name: given[name]}, where)
        elif needed:
            wrong.append(f'{where} lacks {name!r}, which it needs.')
    return wrong


def build(cls: type, given: Mapping[str, Any], where: str) -> Any:
    """Build a class from its settings.

    Raises:
        ForgettingError: What :func:`problems` says of them; all of it.
    """
    wrong = problems(cls, given, where)
    if wrong:
        raise ForgettingError(' '.join(wrong))
    return cls(**given)


def build_from(registry: Registry, config: Mapping[str, Any], where: str) -> Any:
    """Build what ``type`` of a config names in a registry, or is, from its other settings.

    Raises:
        ForgettingError: The name is not in the registry, or :func:`build` refuses.
    """
    given = dict(config)
    kind = given.pop('type', None)
    found = registry.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ForgettingError(f'{where}.type is {kind!r}{nearest(kind, registry.module_dict)}.')
    return build(found, given, f'{where} {found.__name__}')


def settings_of(cls: type) -> dict[str, inspect.Parameter]:
    """Every setting that a class can be built with; ``**kwargs`` goes on to the next class."""
    found: dict[str, inspect.Parameter] = {}
    for init in _inits(cls):
        found = {**_parameters(init), **found}
    return found


def unknown_names(given: Iterable[str], allowed: Iterable[str], where: str) -> list[str]:
    """A sentence for every name that is not allowed, with the nearest that is."""
    allowed = list(allowed)
    return [
        f'{where} has no setting {name!r}{nearest(name, allowed)}; what a base config sets is '
        'taken away with _delete_=True.'
        for name in given
        if name not in allowed
    ]


def nearest(name: object, allowed: Iterable[str]) -> str:
    """' (did you mean ...?); allowed are ...' for a name that is not known."""
    allowed = list(allowed)
    lowered = {known.lower(): known for known in allowed}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=1)
    meant = f' (did you mean {lowered[near[0]]!r}?)' if near else ''
    return f'{meant}; allowed are {", ".join(allowed)}'


def allowed_values(annotation: Any) -> str:
    """What an annotation allows, in words: 'a number from 0 up', 'train, val or None'."""
    if get_origin(annotation) is Annotated:
        described = [x.description for x in get_args(annotation)[1:] if isinstance(x, FieldInfo)]
        if any(described):
            return next(filter(None, described))
        return allowed_values(get_args(annotation)[0])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([str(value) for value in inner])
    if origin in (Union, types.UnionType):
        return _either([allowed_values(part) for part in inner])
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f'a list, each {allowed_values(inner[0])}'
    return _PLAIN.get(origin or annotation, f'a {getattr(annotation, "__name__", annotation)}')


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f'{", ".join(choices[:-1])} or {choices[-1]}'


def _inits(cls: type) -> list[Callable]:
    """The ``__init__`` of a class, and those its ``**kwargs`` go on to."""
    found = []
    for owner in cls.__mro__:
        if '__init__' in vars(owner) and owner is not object:
            found.append(owner.__init__)
            kinds = [p.kind for p in inspect.signature(owner.__init__).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


def _parameters(init: Callable) -> dict[str, inspect.Parameter]:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in variable}


@functools.cache
def _adapters(init: Callable) -> dict[str, tuple[TypeAdapter, str]]:
    hints = get_type_hints(inspect.unwrap(init), include_extras=True)
    hints.pop('return', None)
    return {
        name: (TypeAdapter(hint, config=_CONFIG), allowed_values(hint))
        for name, hint in hints.items()
    }


def wrong_values(init: Callable, given: Mapping[str, Any], where: str) -> list[str]:
    """A sentence for every value that is not what the annotation of its parameter says."""
    wrong = []
    for name, value in given.items():
        if name not in _adapters(init) or value is inspect.signature(init).parameters[name].default:
            continue
        adapter, allowed = _adapters(init)[name]
        try:
            adapter.validate_python(value)
        except ValidationError:
            wrong.append(f'{where}: {name} is {value!r}; it can be {allowed}.')
    return wrong
