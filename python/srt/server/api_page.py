"""docs/api.md, made from the structs that decode the bodies: `python -m srt.server.api_page`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from srt.server.app import ROUTES
from srt.server.openapi import describe

_HEAD = """\
# Every route and field

Made by `python -m srt.server.api_page > docs/api.md` from the structs that decode the bodies; a
test keeps it current. What needs more words stands in [http-api.md](http-api.md). A field is
honoured; or it is refused: any value but `null`, `false` and empty is answered by a 400 that names
it, as is every field that is not listed. Fields may be left out or `null` unless they are required.
"""


def page() -> str:
    """The page as Markdown."""
    described = describe(ROUTES)
    schemas = described["components"]["schemas"]
    lines = [_HEAD, "## Routes", "| route | what | errors |", "| --- | --- | --- |"]
    for path, methods in described["paths"].items():
        told: dict[str, list[str]] = {}
        for method, operation in methods.items():
            errors = ", ".join(code for code in operation["responses"] if code != "200")
            told.setdefault(f"{operation['summary']} | {errors}", []).append(method.upper())
        lines += [f"| `{', '.join(names)} {path}` | {what} |" for what, names in told.items()]
    for name in _bodies(described):
        lines += ["", *_table(name, schemas[name], schemas)]
    return "\n".join(lines) + "\n"


def _bodies(described: Mapping[str, Any]) -> list[str]:
    """Names of the bodies in the order of the routes, each followed by its parts."""
    names: dict[str, None] = {}
    for methods in described["paths"].values():
        for operation in methods.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                _collect(media["schema"], described["components"]["schemas"], names)
    return list(names)


def _collect(schema: Any, schemas: Mapping[str, Any], names: dict[str, None]) -> None:
    for name in _references(schema):
        if name not in names:
            names[name] = None
            _collect(schemas[name].get("properties", {}), schemas, names)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield _name(schema)
        for key, value in schema.items():
            if key != "discriminator":
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _table(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield schema.get("description", "")
    yield ""
    yield "| field | type | | meaning |"
    yield "| --- | --- | --- | --- |"
    required = schema.get("required", ())
    for field, about in schema.get("properties", {}).items():
        why = about.get("x-refused")
        if why is not None:
            yield f"| `{field}` | | refused | {why} |"
            continue
        status = "required" if field in required else "honoured"
        meaning = " ".join([about.get("description", ""), _limits(about)]).strip()
        shown = _type(about, schemas).replace("|", "\\|")
        yield f"| `{field}` | {shown} | {status} | {meaning} |"


def _limits(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if above is not None:
        return f"(above {above}, at most {high})"
    if low is not None and high is not None:
        return f"({low} to {high})"
    return "" if low is None else f"(at least {low})"


def _type(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _link(_name(schema))
    if "anyOf" in schema:
        arms = (arm for arm in schema["anyOf"] if arm.get("type") != "null")
        return " | ".join(dict.fromkeys(_type(arm, schemas) for arm in arms))
    if "enum" in schema:
        return " | ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_type(schema.get('items') or {}, schemas)}]"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"{{text: {_type(values, schemas)}}}" if isinstance(values, Mapping) else "object"
    return {"string": "text", "const": f"`{schema.get('const')}`"}.get(str(kind), str(kind))


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    sys.stdout.write(page())
