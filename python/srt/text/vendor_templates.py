"""Chat templates of families whose checkpoints write them in Python, as jinja."""

from __future__ import annotations

_QWEN_SYSTEM = "You are a helpful assistant."
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    + _QWEN_SYSTEM
    + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "{{ '\n' if not loop.last or add_generation_prompt }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DBRX = (
    "{% for m in messages %}{{ '\n' if not loop.first }}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant\n{% endif %}"
)
GROK2 = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}System: {{ m.content }}<|separator|>\n\n"
    "{% elif m.role == 'user' %}Human: {{ m.content }}<|separator|>\n\n"
    "{% elif m.role == 'assistant' %}Assistant: {{ m.content }}<|separator|>\n\n"
    "{% else %}{{ raise_exception('Grok knows the roles system, user and assistant') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATGLM2 = (
    "[gMASK]sop{% set turn = namespace(number=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set turn.number = turn.number + 1 %}"
    "[Round {{ turn.number }}]{{ '\n\n' }}问：{{ m.content }}{{ '\n\n' }}"  # noqa: RUF001
    "{% elif m.role == 'assistant' %}答：{{ m.content }}{{ '\n\n' }}"  # noqa: RUF001
    "{% elif m.role == 'system' and loop.first %}{{ m.content }}{{ '\n\n' }}"
    "{% else %}{{ raise_exception('ChatGLM 2 knows turns of user and assistant') }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}答：{% endif %}"  # noqa: RUF001
)
CHATGLM3 = (
    "[gMASK]sop{% for m in messages %}<|{{ m.role }}|>{{ '\n ' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
