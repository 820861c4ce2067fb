"""Typed reading of a checkpoint's JSON files: a missing or malformed key is named in the error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from srt.errors import LoadError

JsonObject = Mapping[str, Any]


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file. Raises LoadError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise LoadError(f"{path} is not readable JSON: {e}") from e
    if not isinstance(value, dict):
        raise LoadError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return cast(JsonObject, value)


def merge(old: JsonObject, new: JsonObject) -> JsonObject:
    """`old` with the keys of `new` laid over it, objects merged key by key."""
    out = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


@dataclass(frozen=True, slots=True)
class HfConfig:
    """One JSON object of a checkpoint; `null` counts as absent, as it does in transformers.

    Attributes:
        data: the object.
        where: what to call it in messages, such as the file's path.
    """

    data: JsonObject
    where: str

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def _get(self, keys: tuple[str, ...], kind: type | tuple[type, ...], what: str) -> Any:
        """The first present key's value, or None. Raises LoadError if it is of another kind."""
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise LoadError(f"{self.where}: {key} must be {what}, not {value!r}")
            return value
        return None

    def _need(self, value: Any, keys: tuple[str, ...]) -> Any:
        if value is None:
            raise LoadError(f"{self.where}: {' or '.join(keys)} is missing")
        return value

    def integer_or(self, default: int | None, *keys: str) -> int | None:
        value = self._get(keys, (int, float), "an integer")
        if value is None:
            return default
        if int(value) != value:
            raise LoadError(f"{self.where}: {' or '.join(keys)} must be an integer, not {value!r}")
        return int(value)

    def integer(self, *keys: str, default: int | None = None) -> int:
        return cast(int, self._need(self.integer_or(default, *keys), keys))

    def number_or(self, default: float | None, *keys: str) -> float | None:
        value = self._get(keys, (int, float), "a number")
        return default if value is None else float(value)

    def number(self, *keys: str, default: float | None = None) -> float:
        return cast(float, self._need(self.number_or(default, *keys), keys))

    def flag(self, *keys: str, default: bool) -> bool:
        value = self._get(keys, bool, "true or false")
        return default if value is None else cast(bool, value)

    def text_or(self, default: str | None, *keys: str) -> str | None:
        value = self._get(keys, str, "a string")
        return default if value is None else cast(str, value)

    def text(self, *keys: str, default: str | None = None) -> str:
        return cast(str, self._need(self.text_or(default, *keys), keys))

    def numbers(self, *keys: str) -> tuple[float, ...]:
        """A list of numbers; empty if absent."""
        values = self._get(keys, list, "a list of numbers") or []
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise LoadError(f"{self.where}: {' or '.join(keys)} must be a list of numbers")
        return tuple(float(v) for v in values)

    def strings(self, *keys: str) -> tuple[str, ...]:
        """A list of strings; empty if absent."""
        values = self._get(keys, list, "a list of strings") or []
        if any(not isinstance(v, str) for v in values):
            raise LoadError(f"{self.where}: {' or '.join(keys)} must be a list of strings")
        return tuple(values)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """An id or a list of ids; empty if absent."""
        value = self._get((key,), (int, list), "a token id or a list of them")
        values = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise LoadError(f"{self.where}: {key} must be a token id or a list of them")
        return tuple(values)

    def nested(self, key: str) -> HfConfig | None:
        """A nested object, or None if absent."""
        value = self._get((key,), dict, "an object")
        return None if value is None else HfConfig(value, f"{self.where}: {key}")
