"""What a value has to be: by an annotation, in the key table as in any signature."""

import collections.abc
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch

from armature.config.read import show


class Limit(NamedTuple):
    """What an annotation says beyond the type, by its name in JSON Schema."""

    name: str
    bound: Any
    meaning: str = ''  # of a pattern


LIMITS = {  # what is expected, and whether (value, bound) is it
    'minimum': ('{noun} of at least {bound}', operator.ge),
    'maximum': ('{noun} of at most {bound}', operator.le),
    'exclusiveMinimum': ('{noun} above {bound}', operator.gt),
    'pattern': ('{meaning}', lambda value, pattern: re.fullmatch(pattern, value)),
}
DIVISORS = ('step_size', 'T_max')  # of torch's schedulers, which notice a 0 an epoch later
LISTS = (list, tuple, set, Sequence, Iterable)
OBJECTS = (dict, Mapping)
# "yes" would count as true, and so would "no".
ANSWER = r'true|false|yes|no|on|off|none|null|[01yntf]'
NO_ANSWER = Annotated[str, Limit('pattern', rf'(?is)(?!\s*({ANSWER})?\s*$).*', 'true or false')]
ANY_PARAMETER = inspect.Parameter('others', inspect.Parameter.VAR_KEYWORD)
# What may be annotated, what a config then gives, and what that is called.
PLAIN = (
    ((bool,), bool, 'true or false'),
    ((int,), int, 'a whole number'),
    ((float,), (int, float), 'a number'),
    ((str, Path), str, 'a string'),
    ((None, types.NoneType), types.NoneType, 'null'),
    (OBJECTS, dict, 'an object {...}'),
    (LISTS, (list, tuple), 'a list [...]'),
    ((Callable,), dict, 'an object {"type": ...} of a class whose instances can be called'),
)


def violation(value: Any, hint: Any, *limits: Any) -> str | None:
    """What `value` should have been, when an annotation forbids it; None when it is fine."""
    if not isinstance(value, (int, float, str, dict, list, tuple, types.NoneType)):
        return None  # an object that the script has put in
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    choices = options(hint)
    if choices[0] is not hint:
        expected = [violation(value, each) for each in choices]
        return None if None in expected else ' or '.join(dict.fromkeys(expected))
    if kind is Annotated:
        return violation(value, *parts)
    if kind is typing.Literal:  # 1 is not true, 2.0 is not 2
        is_one = any(value == each and type(value) is type(each) for each in parts)
        return None if is_one else ' or '.join(show(each) for each in parts)
    if kind is torch.Tensor:
        expected = violation(value, list[float])
        with suppress(TypeError, ValueError, RuntimeError):
            expected = expected if torch.tensor(value).ndim < 2 else None  # a matrix
        return expected
    for kinds, accepted, noun in PLAIN:
        if kind not in kinds:
            continue
        is_odd = isinstance(value, bool) and kind is not bool  # True is an int, in Python
        if is_odd or not isinstance(value, accepted):
            return noun
        for limit in (each for each in limits if isinstance(each, Limit)):
            text, holds = LIMITS[limit.name]
            if not holds(value, limit.bound):
                return text.format(noun=noun, **limit._asdict())
    if kind in LISTS and len({*parts} - {...}) == 1:
        for index, item in enumerate(value):
            if (expected := violation(item, parts[0])) is not None:
                return f'{expected} as item {index}'
    return None


def options(hint: Any) -> list:
    """The members of a union, or the one hint."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if is_union else (hint,)
    # Where a number will do, a tensor means the number in one.
    return [each for each in parts if each is not torch.Tensor or float not in parts]


def hint_of(parameter: inspect.Parameter) -> Any:
    """What a config may give for a parameter: by its annotation, or as its default tells."""
    if parameter.name in DIVISORS and parameter.annotation is int:
        return Annotated[int, Limit('minimum', 1)]
    hint, default = parameter.annotation, parameter.default
    if hint is parameter.empty:
        return bool | float | None | list | dict | NO_ANSWER if isinstance(default, bool) else Any
    # An annotation that its own default breaks says nothing: `dropout: int = 0.1`.
    is_broken = default is not None and hint is not bool and violation(default, hint)
    return Any if is_broken else hint


def takes(parameter: inspect.Parameter, *kinds: type) -> bool:
    """Whether a parameter is annotated so that it may be given one of these."""
    choices = options(parameter.annotation)
    return any((typing.get_origin(each) or each) in kinds for each in choices)


def is_called(hint: Any) -> bool:
    """Whether it means what can be called, or a list of that: nothing that a config can spell."""
    choices = [each for each in options(hint) if each is not types.NoneType]
    return all(
        (typing.get_origin(each) or each) is Callable
        or (typing.get_origin(each) in LISTS and any(map(is_called, typing.get_args(each)[:1])))
        for each in choices
    )


def parameters(target: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that can be given by name, in order, and whether any others are taken too.

    A class that only passes `**options` on to its base's constructor has the base's parameters as
    well; those without a default it may give itself.
    """
    found = _signature(target)
    others = next((each.name for each in found if each.kind == each.VAR_KEYWORD), None)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {each.name: each for each in found if each.kind in by_name}
    if others is None or not inspect.isclass(target) or not _passes_on(target, others):
        return named, others is not None
    bases = [each for each in target.__mro__ if '__init__' in vars(each)][1:]
    inherited, is_open = parameters(bases[0])
    optional = {
        name: each.replace(default=...) if each.default is each.empty else each
        for name, each in inherited.items()
    }
    return named | optional | named, is_open


def _signature(target: Callable) -> list[inspect.Parameter]:
    """Its parameters, annotations that are text evaluated; any at all for what is written in C."""
    try:
        found = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return [ANY_PARAMETER]
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    # Names in annotations may be imported for type checkers only, most of them from these.
    names = vars(typing) | vars(collections.abc) | getattr(function, '__globals__', {})
    return [each.replace(annotation=_evaluated(each.annotation, names)) for each in found]


def _evaluated(annotation: Any, names: dict) -> Any:
    """One annotation: each by itself, so that one that cannot be known takes no other along."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(names))  # as Python does: source, and no text of a config
    except Exception:
        return inspect.Parameter.empty


def _passes_on(target: type, name: str) -> bool:
    """Whether its constructor names **name once more, at the end of super().__init__(...)."""
    try:
        source = inspect.getsource(target.__init__)
    except (OSError, TypeError):
        return False
    calls = re.findall(rf'super\(\)\.__init__\([^;]*?\*\*{name},?\s*\)', source)
    return len(calls) == 1 and len(re.findall(rf'\b{name}\b', source)) == 2
