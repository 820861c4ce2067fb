"""The call formats by name, and which one a chat template speaks."""

from __future__ import annotations

from types import MappingProxyType

from srt.text.tools.calls import ToolFormat
from srt.text.tools.json_calls import (
    PYTHON_TAG,
    TOOL_CALLS,
    marked_group,
    read_hermes,
    read_json_list,
    read_llama3,
    read_mistral,
)
from srt.text.tools.xml_calls import FUNCTION, read_glm4, read_qwen3_coder

TOOL_CALL = "<tool_call>"
DEEPSEEK_BEGIN = "<｜tool▁calls▁begin｜>"  # noqa: RUF001
KIMI_BEGIN = "<|tool_calls_section_begin|>"
_DEEPSEEK_MARKS = (
    "<｜tool▁call▁begin｜>",  # noqa: RUF001
    "<｜tool▁sep｜>",  # noqa: RUF001
    "<｜tool▁call▁end｜>",  # noqa: RUF001
    "<｜tool▁calls▁end｜>",  # noqa: RUF001
)
_KIMI_MARKS = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)
_HERMES_MARKS = ("</tool_call>",)
_CODER_MARKS = ("</tool_call>", "</function>", "<parameter=", "</parameter>")
_GLM_MARKS = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_MISTRAL_MARKS = ("[ARGS]", "[CALL_ID]")

TOOL_FORMATS = MappingProxyType(
    {
        format_.name: format_
        for format_ in (
            ToolFormat("hermes", (TOOL_CALL,), read_hermes, _HERMES_MARKS),
            ToolFormat("llama3", (PYTHON_TAG,), read_llama3, is_bare=True),
            ToolFormat("mistral", (TOOL_CALLS,), read_mistral, _MISTRAL_MARKS, id_length=9),
            ToolFormat(
                "deepseek", (DEEPSEEK_BEGIN,), marked_group(*_DEEPSEEK_MARKS), _DEEPSEEK_MARKS
            ),
            ToolFormat("kimi", (KIMI_BEGIN,), marked_group(*_KIMI_MARKS), _KIMI_MARKS),
            ToolFormat("qwen3_coder", (TOOL_CALL, FUNCTION), read_qwen3_coder, _CODER_MARKS),
            ToolFormat("glm45", (TOOL_CALL,), read_glm4, _GLM_MARKS),
        )
    }
)
# What the grammar of a forced call makes a model write.
FORCED = ToolFormat("json", (), read_json_list, is_bare=True)
# What other servers call them.
ALIASES = MappingProxyType(
    {
        "qwen": "hermes",
        "qwen25": "hermes",
        "qwen3": "hermes",
        "llama3_json": "llama3",
        "llama": "llama3",
        "deepseek_v3": "deepseek",
        "deepseekv3": "deepseek",
        "deepseek_v31": "deepseek",
        "deepseekv31": "deepseek",
        "kimi_k2": "kimi",
        "qwen3_xml": "qwen3_coder",
        "glm": "glm45",
    }
)


def find_tool_format(name: str) -> ToolFormat | None:
    """By our name for it or another's."""
    return TOOL_FORMATS.get(ALIASES.get(name, name))


def detect_tool_format(template: str) -> ToolFormat | None:
    """The format that a template tells its model to write, by the marks in it."""
    if "tools" not in template:
        return None
    if FUNCTION in template:
        return TOOL_FORMATS["qwen3_coder"]
    if "<arg_key>" in template:
        return TOOL_FORMATS["glm45"]
    for mark, name in (
        (TOOL_CALL, "hermes"),
        (TOOL_CALLS, "mistral"),
        ("<｜tool▁call", "deepseek"),  # noqa: RUF001
        ("<|tool_call_begin|>", "kimi"),
        (PYTHON_TAG, "llama3"),
        ("<|start_header_id|>", "llama3"),
    ):
        if mark in template:
            return TOOL_FORMATS[name]
    return None
