"""JSON schemas that cover the keywords, and prompts for the ones that a small model can fill.

SERVED: schemas whose documents `bench grammar_documents` and the tests generate: every document is
finite. OTHER: what only asks whether a library takes a schema as it is meant.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
NAME: Schema = {"type": "string", "maxLength": 12}
WORD: Schema = {"type": "string", "pattern": "^[a-z]{2,8}$"}


def closed(**properties: Any) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array(items: Any, low: int = 0, high: int = 3) -> Schema:
    """A bounded array."""
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def integer(low: int, high: int) -> Schema:
    """A bounded integer."""
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float, step: float) -> Schema:
    """A bounded number; the step bounds its digits."""
    return {"type": "number", "minimum": low, "maximum": high, "multipleOf": step}


def matching(pattern: str) -> Schema:
    """A string of a pattern."""
    return {"type": "string", "pattern": pattern}


def with_defs(schema: Schema, **definitions: Any) -> Schema:
    """A schema with $defs."""
    return {**schema, "$defs": definitions}


def ref(name: str) -> Schema:
    """A reference to one of $defs."""
    return {"$ref": f"#/$defs/{name}"}


NODE = closed(value=integer(0, 9), next={"anyOf": [ref("node"), {"type": "null"}]})
CIRCLE = closed(kind={"const": "circle"}, radius=number(0, 10, 0.5))
SQUARE = closed(kind={"const": "square"}, side=integer(1, 9))

SERVED: dict[str, Schema] = {
    "person": closed(name=NAME, age=integer(0, 150)),
    "nested": closed(a=closed(b=closed(c=closed(d={"type": "boolean"})))),
    "enum_strings": closed(color={"enum": ["red", "green", "blue"]}),
    "enum_mixed": closed(x={"enum": [1, "one", None, True, [1], {"a": 1}]}),
    "const_object": closed(version={"const": {"major": 1, "minor": [2, 3]}}),
    "array_integers": closed(xs=array(integer(-5, 5), 1, 5)),
    "array_enums": closed(xs=array({"enum": ["x", "y"]}, 2, 4)),
    "array_objects": closed(items=array(closed(id=integer(1, 99), ok={"type": "boolean"}))),
    "array_of_arrays": closed(grid=array(array(integer(0, 1), 2, 2), 2, 2)),
    "tuple": closed(
        pair={
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"enum": ["m", "kg"]}],
            "items": False,
            "minItems": 2,
        }
    ),
    "top_array": array(closed(k=WORD), 1, 3),
    "top_enum": {"enum": ["yes", "no", "maybe"]},
    "top_number": number(-1, 1, 0.25),
    "phone": closed(phone=matching(r"^\+[0-9]{2} [0-9]{3}-[0-9]{4}$")),
    "plate": closed(plate=matching("^[A-Z]{2}-[0-9]{1,4}$")),
    "hex": closed(color=matching("^#[0-9a-f]{6}$")),
    "pattern_and_length": closed(
        s={"type": "string", "pattern": "^a[bc]*$", "minLength": 3, "maxLength": 6}
    ),
    "lengths": closed(s={"type": "string", "minLength": 3, "maxLength": 5}),
    "unicode": closed(s={"type": "string", "pattern": "^[à-ÿ]{1,5}$"}),
    "date": closed(day={"type": "string", "format": "date"}),
    "date_time": closed(at={"type": "string", "format": "date-time", "maxLength": 25}),
    "uuid": closed(id={"type": "string", "format": "uuid"}),
    "ipv4": closed(ip={"type": "string", "format": "ipv4"}),
    "int_bounds": closed(n=integer(17, 23)),
    "exclusive_int": closed(n={"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5}),
    "number_bounds": closed(p=number(0.25, 0.75, 0.125)),
    "exclusive_number": closed(
        p={"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 2.5, "multipleOf": 0.5}
    ),
    "multiple": closed(n={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 70}),
    "negative": closed(t=integer(-40, -10)),
    "ref": with_defs(closed(home=ref("place"), work=ref("place")), place=closed(city=NAME)),
    "ref_definitions": {
        **closed(a={"$ref": "#/definitions/w"}),
        "definitions": {"w": {"enum": ["p", "q"]}},
    },
    "ref_chain": with_defs(ref("a"), a=ref("b"), b=closed(c=ref("d")), d=integer(1, 3)),
    "ref_in_array": with_defs(closed(xs=array(ref("x"), 1, 2)), x=closed(v={"enum": [1, 2]})),
    "any_of": closed(v={"anyOf": [integer(0, 9), {"type": "boolean"}, {"type": "null"}]}),
    "one_of_types": closed(v={"oneOf": [integer(0, 9), {"type": "null"}]}),
    "one_of_tagged": closed(shape={"oneOf": [CIRCLE, SQUARE]}),
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"a": integer(0, 9)}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
        "additionalProperties": False,
        "properties": {"a": {}, "b": {}},
    },
    "type_list": closed(v={"type": ["boolean", "null"]}),
    "optional": {
        "type": "object",
        "properties": {"a": integer(0, 9), "b": {"type": "boolean"}, "c": {"enum": ["z"]}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "map": {
        "type": "object",
        "patternProperties": {"^[a-c]$": integer(0, 9)},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "order": closed(
        id=matching("^ORD-[0-9]{4}$"),
        lines=array(closed(sku=WORD, count=integer(1, 20), price={"enum": [1.5, 2, 9.99]}), 1, 2),
        status={"enum": ["new", "paid", "sent"]},
        note={"anyOf": [{"type": "string", "maxLength": 10}, {"type": "null"}]},
    ),
}

OTHER: dict[str, Schema] = {
    "any": {},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "string": {"type": "string"},
    "additional_schema": {"type": "object", "additionalProperties": {"type": "integer"}},
    "recursive": with_defs(ref("node"), node=NODE),
    "free_number": {"type": "number", "minimum": 0.25, "exclusiveMaximum": 0.75},
    "email": closed(e={"type": "string", "format": "email"}),
    "time": closed(t={"type": "string", "format": "time"}),
    "duration": closed(t={"type": "string", "format": "duration"}),
    "ipv6": closed(t={"type": "string", "format": "ipv6"}),
    "hostname": closed(t={"type": "string", "format": "hostname"}),
    "uri": closed(t={"type": "string", "format": "uri"}),
    "unanchored_pattern": closed(s=matching("[0-9]+")),
    "annotations": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "t",
        "description": "d",
        "examples": [1],
        "default": 1,
        "type": "integer",
    },
    "multiple_of_number": closed(n={"type": "number", "multipleOf": 0.5}),
    "min_properties": {"type": "object", "minProperties": 2},
    "unique_items": {"type": "array", "items": integer(0, 3), "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "not": {"type": "integer", "not": {"const": 3}},
    "if_then": {"if": {"type": "integer"}, "then": {"minimum": 3}},
    "property_names": {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}},
    "dependent_required": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluated": {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
    "one_of_overlapping": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0}]},
    "dynamic_ref": {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x"}}},
}

# Documents that their schemas forbid: a library that accepts one does not enforce the keyword.
FORBIDDEN: dict[str, str] = {
    "pattern_and_length": '{"s": "ab"}',
    "lengths": '{"s": "ab"}',
    "int_bounds": '{"n": 24}',
    "number_bounds": '{"p": 0.751}',
    "exclusive_number": '{"p": 2.5}',
    "multiple": '{"n": 8}',
    "all_of": '{"a": 1}',
    "map": '{"a": 1, "b": 1, "c": 1}',
    "one_of_tagged": '{"shape": {"kind": "circle", "side": 1}}',
    "array_integers": '{"xs": []}',
    "uuid": '{"id": "0"}',
    "additional_schema": '{"a": "x"}',
    "email": '{"e": "x"}',
    "unanchored_pattern": '{"s": "ab"}',
    "multiple_of_number": '{"n": 0.25}',
    "min_properties": '{"a": 1}',
    "unique_items": "[1, 1]",
    "contains": "[2]",
    "not": "3",
    "if_then": "2",
    "property_names": '{"A": 1}',
    "dependent_required": '{"a": 1}',
    "unevaluated": '{"b": 1}',
    "one_of_overlapping": "1",
}
