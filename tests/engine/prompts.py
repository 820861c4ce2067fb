"""Fifty prompts of many kinds for the real model."""

from __future__ import annotations

_QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain recursion to a child.",
    "List three prime numbers above fifty.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet, and when?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarise the water cycle in one sentence.",
    "What is 17 times 23? Think step by step.",
)
CHATS = tuple(
    f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in _QUESTIONS
)

CODE = (
    "def fibonacci(n):\n    ",
    "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, cols):\n",
    "#include <vector>\n\nint main() {\n  std::vector<int> v;\n  for (",
    "SELECT name, COUNT(*) FROM users WHERE",
    "const add = (a, b) =>",
    "fn main() {\n    let mut total: u64 = 0;\n",
    "<html>\n<head><title>",
    '{"name": "Ada", "age": 36, "languages": [',
    "for i in $(seq 1 10); do\n  echo",
    "\\begin{theorem} Every bounded sequence",
)

NON_LATIN = (
    "Столица России — это",
    "日本の首都は",
    "中国的首都是",
    "עיר הבירה של ישראל היא",
    "عاصمة مصر هي",
    "Η πρωτεύουσα της Ελλάδας είναι",  # noqa: RUF001
    "대한민국의 수도는",
    "भारत की राजधानी",
    "🙂🙃🚀 emoji and naïve café déjà vu",
    "เมืองหลวงของประเทศไทยคือ",
)

SHORT = ("A", "The", "1", "\n", " ", "Hello", "0.5", "?", "x =", "Yes,")

_PARAGRAPH = (
    "The river rises in the hills, gathers the streams of a dozen valleys, and reaches the plain "
    "where the old town stands. Its bridges were built by masons whose names nobody remembers. "
)
LONG = tuple(_PARAGRAPH * times + end for times, end in (
    (1, "In spring"),
    (1, "The first bridge"),
    (1, "Once, a traveller"),
    (1, "Downstream of the town"),
    (2, "The masons"),
    (2, "1. 2. 3."),
    (2, "Question: where does it rise? Answer:"),
    (2, "Und auf Deutsch:"),
    (4, "A list of the bridges:\n-"),
    (6, "The end."),
))  # fmt: skip

PROMPTS = (*CHATS, *CODE, *NON_LATIN, *SHORT, *LONG)
