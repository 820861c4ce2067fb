"""How a settings dataclass becomes a command line: one declaration gives all of a flag."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Any

from srt.errors import ConfigError

TRUE_WORDS = frozenset(("1", "true", "yes", "on"))
FALSE_WORDS = frozenset(("0", "false", "no", "off", ""))


@dataclass(frozen=True, slots=True)
class Flag:
    """What the command line knows of one setting.

    names: aliases beside `--field-name`. low, high: inclusive limits. env: variables read besides
    `SRT_FIELD_NAME`, in order. secret: never shown.
    """

    group: str
    help: str
    names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    env: tuple[str, ...] = ()
    secret: bool = False


def flag(group: str, text: str, default: Any = MISSING, **spec: Any) -> Any:
    """A dataclass field that is also a flag; `spec` holds the rest of `Flag`."""
    declared = Flag(group=group, help=text, **spec)
    return dataclasses.field(default=default, repr=not declared.secret, metadata={"flag": declared})


def flag_name(field: str) -> str:
    """`tp_size` -> `--tp-size`."""
    return "--" + field.replace("_", "-")


def specs(cls: type) -> dict[str, tuple[dataclasses.Field[Any], Flag]]:
    """The settings of `cls` by field name."""
    return {f.name: (f, f.metadata["flag"]) for f in dataclasses.fields(cls)}


class RefusedFlag(argparse.Action):
    """A flag that is known and cannot be honoured: using it is an error that says why."""

    def __init__(self, option_strings: Sequence[str], dest: str, why: str) -> None:
        super().__init__(option_strings, dest, nargs="*", help=argparse.SUPPRESS)
        self.why = why

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,  # noqa: ARG002
        values: Any,  # noqa: ARG002
        option_string: str | None = None,
    ) -> None:
        raise ConfigError(f"{option_string} is refused: {self.why}")


def add_flags(parser: argparse.ArgumentParser, cls: type, refused: Mapping[str, str]) -> None:
    """Declare every setting of `cls` on `parser`, grouped, and the refused flags."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    types = typing.get_type_hints(cls)
    for name, (field, spec) in specs(cls).items():
        group = groups.get(spec.group)
        if group is None:
            group = groups[spec.group] = parser.add_argument_group(spec.group)
        group.add_argument(
            flag_name(name),
            *spec.names,
            dest=name,
            default=None,
            help=_help(field, spec),
            **_arity(name, types[name], spec),
        )
    for option, why in refused.items():
        parser.add_argument(option, action=RefusedFlag, dest="_refused", why=why)


def collect(cls: type, given: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """Values for `cls`: the command line before the environment; what neither names is left out."""
    values: dict[str, Any] = {}
    types = typing.get_type_hints(cls)
    for name, (_, spec) in specs(cls).items():
        value = getattr(given, name)
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
            continue
        for variable in (f"SRT_{name.upper()}", *spec.env):
            if variable in environ:
                values[name] = _from_environment(variable, environ[variable], types[name])
                break
    return values


def check_limits(record: Any) -> None:
    """Raise ConfigError for the first setting outside its choices or limits, naming all three."""
    for name, (_, spec) in specs(type(record)).items():
        value = getattr(record, name)
        if value is None:
            continue
        option = flag_name(name)
        if spec.choices and value not in spec.choices:
            raise ConfigError(f"{option} is {value!r}; it must be one of {', '.join(spec.choices)}")
        if spec.low is not None and value < spec.low:
            raise ConfigError(f"{option} is {value}; it must be at least {spec.low:g}")
        if spec.high is not None and value > spec.high:
            raise ConfigError(f"{option} is {value}; it must be at most {spec.high:g}")


def _help(field: dataclasses.Field[Any], spec: Flag) -> str:
    shown = spec.help.replace("%", "%%")
    notes = []
    if field.default is MISSING:
        notes.append("required")
    elif field.default not in (None, False, (), ""):
        notes.append(f"default: {field.default}")
    notes += [f"${variable}" for variable in spec.env]
    return f"{shown} ({'; '.join(notes)})" if notes else shown


def _scalar(hint: Any) -> Any:
    """`int | None` -> `int`; `tuple[str, ...]` stays."""
    if isinstance(hint, UnionType):
        return next(arm for arm in typing.get_args(hint) if arm is not NoneType)
    return hint


def _arity(name: str, hint: Any, spec: Flag) -> dict[str, Any]:
    scalar = _scalar(hint)
    if scalar is bool:
        return {"action": "store_const", "const": True}
    if typing.get_origin(scalar) is tuple:
        return {"nargs": "+", "metavar": name.upper()}
    if typing.get_origin(scalar) is dict:
        return {"type": partial(_json_object, flag_name(name)), "metavar": "JSON"}
    metavar = "{" + ",".join(spec.choices) + "}" if spec.choices else scalar.__name__
    return {"type": scalar, "metavar": metavar}


def _json_object(source: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{source} must be a JSON object, got {text!r}")
    return value


def _from_environment(variable: str, text: str, hint: Any) -> Any:
    scalar = _scalar(hint)
    if scalar is bool:
        return _boolean(variable, text)
    if typing.get_origin(scalar) is tuple:
        return tuple(text.split(","))
    if typing.get_origin(scalar) is dict:
        return _json_object(f"${variable}", text)
    convert: Callable[[str], Any] = scalar
    try:
        return convert(text)
    except ValueError as error:
        raise ConfigError(f"${variable} is {text!r}; it must be {scalar.__name__}") from error


def _boolean(variable: str, text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise ConfigError(f"${variable} is {text!r}; it must be true or false")
