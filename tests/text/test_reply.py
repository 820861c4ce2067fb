"""Thoughts and tool calls: every format, equal at every split point; malformed calls stay text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt.errors import ConfigError
from srt.text.reasoning import REASONING_FORMATS
from srt.text.reply import ReplyParser, choose_reply_format, join
from srt.text.tools.calls import CallFinder, Function, Piece
from srt.text.tools.formats import FORCED, TOOL_FORMATS, detect_tool_format

FUNCTIONS = (
    Function(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "tags": {"type": "array"},
            },
        },
    ),
    Function("now", {"type": "object", "properties": {}}),
)
FORMATS = {**TOOL_FORMATS, "json": FORCED}
ARGS = '{"city": "S\\u00e3o \\"P\\" {日}", "days": -1.5e3, "tags": [true, null, {"a": []}]}'


@dataclass
class Reply:
    """What a reply comes to: its text, and its calls as names and arguments."""

    text: str
    calls: list[tuple[str, str]]


def parse(name: str, parts: list[str]) -> Reply:
    finder = CallFinder(FORMATS[name], FUNCTIONS)
    pieces = [piece for part in parts for piece in finder.push(part)] + finder.finish()
    return reply_of(pieces)


def reply_of(pieces: list[Piece]) -> Reply:
    reply = Reply("", [])
    for piece in join(pieces):
        if piece.kind == "text":
            reply.text += piece.text
        elif piece.kind == "call":
            assert piece.index == len(reply.calls)
            reply.calls.append((piece.text, ""))
        else:
            assert piece.index == len(reply.calls) - 1
            reply.calls[-1] = (reply.calls[-1][0], reply.calls[-1][1] + piece.text)
    return reply


def hermes(name: str, args: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {args}}}\n</tool_call>'


def deepseek3(name: str, args: str) -> str:
    begin, sep, end = DS_MARKS
    return f"{begin}function{sep}{name}\n```json\n{args}\n```{end}"


def deepseek31(name: str, args: str) -> str:
    begin, sep, end = DS_MARKS
    return f"{begin}{name}{sep}{args}{end}"


DS_MARKS = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")  # noqa: RUF001
KIMI_MARKS = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
DS, DS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
KIMI = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def kimi(name: str, args: str, i: int) -> str:
    begin, middle, end = KIMI_MARKS
    return f"{begin}functions.{name}:{i}{middle}{args}{end}"


CODER = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nSão\n"Paulo"\n</parameter>\n'
    '<parameter=days>\n3\n</parameter>\n<parameter=tags>\n["a"]\n</parameter>\n</function>\n'
    "</tool_call>"
)
CODER_ARGS = '{"city": "São\\n\\"Paulo\\"", "days": 3, "tags": ["a"]}'
GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>two</arg_value>\n</tool_call>"
)
WEATHER = ("get_weather", ARGS)
NOW = ("now", "{}")

# format, reply, its text, its calls
GOOD: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", hermes("get_weather", ARGS), "", [WEATHER]),
    (
        "hermes",
        f"Let me see.\n{hermes('get_weather', ARGS)}\n{hermes('now', '{}')}\n",
        "Let me see.",
        [WEATHER, NOW],
    ),
    ("hermes", f"{hermes('now', 'null')} Done <b>", " Done <b>", [NOW]),
    ("hermes", '<tool_call>{"arguments": {"city": "x"}, "name": "get_weather"}</tool_call>', "",
     [("get_weather", '{"city": "x"}')]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"id": [1], "name": "now", "arguments": "{\\"a\\": 1}", "x": {}}', "",
     [("now", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}\n</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "x\ny"}}</tool_call>', "",
     [("now", '{"a": "x\\ny"}')]),
    ("llama3", f'{{"name": "get_weather", "parameters": {ARGS}}}', "", [WEATHER]),
    ("llama3", '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
     "", [NOW, NOW]),
    ("llama3", '\n{"type": "function", "name": "now", "parameters": {}}\n', "", [NOW]),
    ("llama3", 'Sure: <|python_tag|>{"name": "now", "parameters": {}}', "Sure:", [NOW]),
    ("mistral", f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {ARGS}}}, '
     '{"name": "now", "arguments": {}}]', "", [WEATHER, NOW]),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{ARGS}[TOOL_CALLS]now[CALL_ID]abc123XYZ[ARGS]{{}}",
     "", [WEATHER, NOW]),
    ("mistral", "[TOOL_CALLS]now{}", "", [NOW]),
    ("deepseek", f"Hm.{DS}{deepseek3(*WEATHER)}\n{deepseek3(*NOW)}{DS_END}", "Hm.", [WEATHER, NOW]),
    ("deepseek", f"{DS}{deepseek31(*WEATHER)}{deepseek31(*NOW)}{DS_END}", "", [WEATHER, NOW]),
    ("kimi", f"{KIMI[0]}{kimi(*WEATHER, 0)}{kimi(*NOW, 1)}{KIMI[1]}", "", [WEATHER, NOW]),
    ("qwen3_coder", f"Now:\n{CODER}\n{CODER}", "Now:", [("get_weather", CODER_ARGS)] * 2),
    ("qwen3_coder", "<function=now>\n</function>", "", [NOW]),
    ("glm45", GLM, "", [("get_weather", '{"city": "Rome", "days": "two"}')]),
    ("glm45", "<tool_call>now\n</tool_call>", "", [NOW]),
    ("json", f'[{{"name": "get_weather", "parameters": {ARGS}}}]', "", [WEATHER]),
]  # fmt: skip

# format, reply that holds no whole call: text as it stands
TEXTS: list[tuple[str, str]] = [
    ("hermes", "Just words, a < b, <tool> and <tool_cal\n"),
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call>\nnow()\n</tool_call>"),
    ("hermes", '<tool_call>{"name": "now", "arguments": }</tool_call> tail '),
    ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", '),
    ("hermes", '<tool_call>{"name": "no\\w"}'),
    ("hermes", '<tool_call>{"name": "\\ud800"}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 01}, "name": "now"}</tool_call>'),
    ("llama3", '{"name": "Ann", "parameters": {}}'),
    ("llama3", '{"answer": 42}'),
    ("llama3", "{not json}"),
    ("llama3", "<|python_tag|>print(1)"),
    ("llama3", ' {"name": "now", "parameters": 3}'),
    ("mistral", "[TOOL_CALLS] now"),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "a list: [1, 2]"),
    ("deepseek", f"{DS}{DS_END[:-1]}"),
    ("deepseek", f"{DS}<｜tool▁call▁begin｜>now<｜tool▁sep｜>no json<｜tool▁call▁end｜>{DS_END}"),  # noqa: RUF001
    ("kimi", f"{KIMI[0]}<|tool_call_begin|>functions.x:0"),
    ("qwen3_coder", "<tool_call>\n<function=other>\n</function>\n</tool_call>"),
    ("qwen3_coder", "<function=now oops>"),
    ("glm45", "<tool_call>what is <arg_key>"),
    ("json", "[]"),
]

# format, reply that goes wrong after its arguments have begun: nothing of it is lost
BROKEN: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool_call> x', " x",
     [("now", '{"a": oops}}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "b', "", [("now", '{"a": "b')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}, oops}</tool_call>',
     ", oops}</tool_call>", [NOW]),
    ("llama3", '{"name": "now", "parameters": {}} and more', " and more", [NOW]),
    ("llama3", '{"name": "now", "parameters": {}}; {"name": "x"}', '; {"name": "x"}', [NOW]),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, 5]', ", 5]", [NOW]),
    ("deepseek", f"{DS}{deepseek31(*NOW)}junk{DS_END}", f"junk{DS_END}", [NOW]),
    ("qwen3_coder", "<function=get_weather><parameter=city>\nRo", "",
     [("get_weather", '{"city": "Ro')]),
    ("glm45", "<tool_call>get_weather<arg_key>city</arg_key>junk</tool_call>", "junk</tool_call>",
     [("get_weather", "{}")]),
]  # fmt: skip

ALL = [(name, reply) for name, reply, *_ in (*GOOD, *BROKEN)] + TEXTS


@pytest.mark.parametrize(("name", "reply", "text", "calls"), GOOD + BROKEN)
def test_calls(name: str, reply: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert parse(name, [reply]) == Reply(text, calls)


@pytest.mark.parametrize(("name", "reply", "text", "calls"), GOOD)
def test_arguments_are_json(name: str, reply: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert text is not None
    assert calls
    for _, arguments in parse(name, [reply]).calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(("name", "reply"), TEXTS)
def test_what_is_no_call_is_text(name: str, reply: str) -> None:
    assert parse(name, [reply]) == Reply(reply, [])


@pytest.mark.parametrize(("name", "reply"), ALL)
def test_every_split_tells_the_same(name: str, reply: str) -> None:
    whole = parse(name, [reply])
    assert parse(name, list(reply)) == whole
    for i in range(len(reply) + 1):
        assert parse(name, [reply[:i], reply[i:]]) == whole
    for i, j in combinations(range(0, len(reply), 11), 2):
        assert parse(name, [reply[:i], reply[i:j], reply[j:]]) == whole


FRAGMENTS = [
    *[mark for f in FORMATS.values() for mark in (*f.begins, *f.others)],
    *['{"name": "now", "arguments": {}}', '"name"', ": ", "{", "}", '"', "[", "]", ",", "\\", "\n"],
    *["now", "function", "```json", "1", "tr", "words "],
]


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", sorted(FORMATS))
@given(data=st.data())
def test_any_text_at_any_split(name: str, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=14))
    reply = "".join(parts)
    whole = parse(name, [reply])
    assert parse(name, list(reply)) == whole
    assert parse(name, parts) == whole
    if not whole.calls:
        assert whole.text == reply


THOUGHTS = [
    # format, whether the prompt opened the thoughts, reply, thoughts, text
    ("qwen3", False, "<think>\nHm.\n\nOk.\n</think>\n\nYes.", "Hm.\n\nOk.", "Yes."),
    ("qwen3", True, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
    ("qwen3", True, "<think>Hm.</think>Yes.</think>", "Hm.", "Yes.</think>"),
    ("qwen3", False, " Plain <think>text</think>.", "", " Plain <think>text</think>."),
    ("qwen3", False, "<think>\n\n</think>\n\nYes. ", "", "Yes. "),
    ("qwen3", False, "<think>never ends </thin", "never ends </thin", ""),
    ("qwen3", False, "  <thin", "", "  <thin"),
    ("magistral", False, "[THINK]a [b][/THINK]c", "a [b]", "c"),
    ("kimi", False, "◁think▷日本◁/think▷語", "日本", "語"),
    ("qwen3", False, "", "", ""),
]


@pytest.mark.parametrize(("name", "opens", "reply", "thoughts", "text"), THOUGHTS)
def test_thoughts_at_every_split(
    name: str, opens: bool, reply: str, thoughts: str, text: str
) -> None:
    def split(parts: list[str]) -> tuple[str, str, int]:
        parser = ReplyParser(reasoning=REASONING_FORMATS[name], opens=opens)
        pieces = [piece for part in parts for piece in parser.push(part)] + parser.finish()
        told = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in KINDS}
        return told["reasoning"], told["text"], parser.num_reasoning_bytes

    whole = split([reply])
    assert whole[:2] == (thoughts, text)
    assert reply.encode()[whole[2] :].decode().strip() == text.strip()
    assert split(list(reply)) == whole
    for i in range(len(reply) + 1):
        assert split([reply[:i], reply[i:]]) == whole


KINDS = ("reasoning", "text", "call", "arguments")


def test_calls_come_after_thoughts_only() -> None:
    call = hermes("now", "{}")
    parser = ReplyParser(
        reasoning=REASONING_FORMATS["qwen3"],
        opens=True,
        tools=TOOL_FORMATS["hermes"],
        functions=FUNCTIONS,
    )
    pieces = parser.push(f"I might {call}\n</think>\n\nOk.{call}") + parser.finish()
    assert join(pieces) == [
        Piece("reasoning", f"I might {call}"),
        Piece("text", "Ok."),
        Piece("call", "now", 0),
        Piece("arguments", "{}", 0),
    ]


def test_arguments_stream_as_they_come() -> None:
    finder = CallFinder(TOOL_FORMATS["hermes"], FUNCTIONS)
    told = []
    for part in ['<tool_call>{"name": "now', '", "arguments": {"a', '": "b', ' c"', "}}"]:
        told.append("".join(p.text for p in finder.push(part) if p.kind == "arguments"))
    assert told == ["", '{"a', '": "b', ' c"', "}"]


@pytest.mark.parametrize(
    ("name", "prompt", "opens"),
    [
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("deepseek-r1", "<｜Assistant｜>", True),  # noqa: RUF001
        ("deepseek-r1", "<｜Assistant｜></think>", False),  # noqa: RUF001
    ],
)
def test_whether_a_prompt_opens_the_thoughts(name: str, prompt: str, opens: bool) -> None:
    assert REASONING_FORMATS[name].opens(prompt) is opens


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{{ messages }}", None, None),
        ("{% if tools %}<tool_call>{% endif %}<think>", "hermes", "qwen3"),
        ("{% if tools %}<tool_call><function=x>{% endif %}", "qwen3_coder", None),
        ("{% if tools %}<tool_call><arg_key>{% endif %}", "glm45", None),
        ("{{ tools }}[TOOL_CALLS]", "mistral", None),
        ("{{ tools }}<｜tool▁calls▁begin｜>", "deepseek", None),  # noqa: RUF001
        ("{{ tools }}<|start_header_id|>", "llama3", None),
        ("<|start_header_id|>", None, None),
        ("{{ tools }}", None, None),
        (None, None, None),
    ],
)
def test_what_a_template_shows(
    template: str | None, tools: str | None, reasoning: str | None
) -> None:
    found = choose_reply_format("auto", "auto", template)
    assert (found.tools.name if found.tools else None) == tools
    assert (found.reasoning.name if found.reasoning else None) == reasoning
    assert choose_reply_format("none", "none", template).tools is None


def test_names_of_other_servers_and_unknown_ones() -> None:
    found = choose_reply_format("qwen25", "deepseek_r1", None)
    assert found.tools is TOOL_FORMATS["hermes"]
    assert found.reasoning is REASONING_FORMATS["deepseek-r1"]
    with pytest.raises(ConfigError, match="--tool-call-parser is 'nope'"):
        choose_reply_format("nope", "auto", None)
    with pytest.raises(ConfigError, match="--reasoning-parser is 'nope'"):
        choose_reply_format("auto", "nope", None)
    assert detect_tool_format("tools [TOOL_CALLS]") is TOOL_FORMATS["mistral"]
