"""Chat prompts: own templates in a sandbox, named formats, files, continuation, one BOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srt.errors import ConfigError, InvalidParameter
from srt.text.chat import ChatFormat, choose_format
from srt.text.conversation import BUILT_IN, STYLES, Conversation
from srt.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_the_tokenizers_own_template(byte_level: Tokenizer) -> None:
    prompt = choose_format(byte_level, None).prompt([SYSTEM, USER])
    assert prompt.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.input_ids == byte_level.encode(prompt.text)


def test_a_final_assistant_message_goes_on(byte_level: Tokenizer) -> None:
    chat = choose_format(byte_level, None)
    assert chat.prompt([USER, REPLY]).text.endswith("<|im_start|>assistant\nHello")
    assert chat.prompt([USER, REPLY], continue_final=False).text.endswith("<|im_start|>assistant\n")
    with pytest.raises(InvalidParameter, match="the final role is user"):
        chat.prompt([USER], continue_final=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "llama-2",
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Hi [/INST]",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("vicuna_v1.1", "Be brief. USER: Hi ASSISTANT: Hello</s>USER: Hi ASSISTANT:"),
        (
            "qwen2-vl",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "internlm2-chat",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_named_formats(byte_level: Tokenizer, name: str, text: str) -> None:
    prompt = choose_format(byte_level, name).prompt([SYSTEM, USER, REPLY, USER])
    assert prompt.text == text
    assert prompt.stop == BUILT_IN[name].stop


def test_every_style_shows_the_messages_and_opens_a_reply() -> None:
    for style in STYLES:
        chat = Conversation("x", ("U", "A"), style, "|")
        text = chat.render("S", [(False, "one"), (True, "two"), (False, "three")])
        assert text.startswith("S")
        assert text.index("one") < text.index("two") < text.index("three")
        assert "A" in text[text.index("three") :]


def test_one_beginning_token(sentence_piece: Tokenizer) -> None:
    chat = ChatFormat(sentence_piece, Conversation("x", ("<s>", "w"), "NO_COLON_SINGLE", "."))
    assert chat.prompt([USER]).input_ids.count(1) == 1


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_name_with_and_without_a_system_message(
    byte_level: Tokenizer, sentence_piece: Tokenizer, name: str
) -> None:
    own = BUILT_IN[name].system_message
    assert own in choose_format(byte_level, name).prompt([USER]).text
    for messages in ([USER], [SYSTEM, USER], [USER, REPLY, USER], [USER, REPLY]):
        prompt = choose_format(sentence_piece, name).prompt(messages)
        assert prompt.input_ids.count(1) == 1 + prompt.text.count("<s>")
        assert prompt.input_ids[:1] == [1]
        assert prompt.input_ids[1:2] != [1]
        assert prompt.text.count("Hi") == len([m for m in messages if m is USER])
    with pytest.raises(InvalidParameter, match="no place for the role tool"):
        choose_format(byte_level, name).prompt([USER, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize("template", ["{{ bos_token }}x", "x", "<s>x"])
def test_no_prompt_begins_with_two_beginning_tokens(
    sentence_piece: Tokenizer, template: str
) -> None:
    ids = ChatFormat(sentence_piece, template).prompt([USER]).input_ids
    assert ids.count(1) == (0 if template == "x" else 1)
    assert sentence_piece.encode("<s>Hello").count(1) == 1


def test_a_json_file_with_a_list_of_stops(byte_level: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    keys = {
        "name": "mine", "system": "<sys>", "user": "U", "assistant": "A", "sep_style": "CHATML",
        "sep": "</m>", "stop_str": ["</m>", "<end>"],
    }  # fmt: skip
    file.write_text(json.dumps(keys))
    prompt = choose_format(byte_level, str(file)).prompt([SYSTEM, USER])
    assert prompt.text == "<sys>\nBe brief.</m>\nU\nHi</m>\nA\n"
    assert prompt.stop == ("</m>", "<end>")
    file.write_text(json.dumps({**keys, "sep_style": "NONE"}))
    with pytest.raises(ConfigError, match="sep_style is 'NONE'"):
        choose_format(byte_level, str(file))


def test_a_jinja_file(byte_level: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}\\n{% endfor %}\n")
    assert choose_format(byte_level, str(file)).prompt([USER]).text == "Hi\n"


def test_what_is_no_template_is_refused(byte_level: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nope'; it must be one of llama-2"):
        choose_format(byte_level, "nope")
    broken = tmp_path / "b.jinja"
    broken.write_text("{% if %}")
    with pytest.raises(ConfigError, match="not valid"):
        choose_format(byte_level, str(broken))
    with pytest.raises(InvalidParameter, match="--chat-template"):
        ChatFormat(byte_level, None).prompt([USER])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1] }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
    ],
)
def test_templates_run_in_a_sandbox_and_may_refuse(byte_level: Tokenizer, attack: str) -> None:
    with pytest.raises(InvalidParameter, match="the chat template refused"):
        ChatFormat(byte_level, attack).prompt([USER])


def test_generation_marks_and_loop_controls_work(byte_level: Tokenizer) -> None:
    body = "{% generation %}{{ m.content }}{% endgeneration %}{% break %}"
    source = "{% for m in messages %}" + body + "{% endfor %}"
    assert ChatFormat(byte_level, source).prompt([USER, USER]).text == "Hi"


def test_template_variables(byte_level: Tokenizer) -> None:
    chat = ChatFormat(byte_level, "{{ eos_token }}{{ mood }}")
    assert chat.prompt([USER], variables={"mood": "good"}).text == "<|im_end|>good"


def test_developers_speak_as_the_system_where_a_template_does_not_know_them(
    byte_level: Tokenizer,
) -> None:
    plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    asked = [{"role": "developer", "content": "Be brief."}, USER]
    assert ChatFormat(byte_level, plain).prompt(asked).text == "[system]Be brief.[user]Hi"
    knowing = "{# developer #}" + plain
    assert ChatFormat(byte_level, knowing).prompt(asked).text == "[developer]Be brief.[user]Hi"
