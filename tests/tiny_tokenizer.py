"""Small tokenizers made on the spot: byte-level BPE, and SentencePiece style with byte fallback."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The capital city of France is Paris. The capital of Japan is Tokyo.",
    "Hello world, hello there; stop here. Once upon a time there was a prince.",
    "naïve café — 日本語 текст 🎉🎊 0123456789 {} [] () <> \n\t user assistant system",
] * 4
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS_ID, IM_START_ID, IM_END_ID = 0, 1, 2


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE; ids 0, 1, 2 are SPECIALS, the last id is the added word `<think>`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def sentence_piece() -> tokenizers.Tokenizer:
    """Llama-2 style: `▁` for spaces, byte fallback, one leading space stripped; `<s>` is added."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"Helowrdt.", "el", "ell", "▁H", "▁w", "or", "▁Hell", "▁wor"]
    merges = [
        ("e", "l"),
        ("el", "l"),
        ("▁", "H"),
        ("▁", "w"),
        ("o", "r"),
        ("▁H", "ell"),
        ("▁w", "or"),
    ]
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": pieces[i],
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for i in range(3)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def write_checkpoint(folder: Path, tokenizer: tokenizers.Tokenizer, **config: object) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_chat_checkpoint(folder: Path) -> Path:
    """The byte-level tokenizer with a ChatML template; `<|im_end|>` ends an answer."""
    return write_checkpoint(
        folder, byte_level(), eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )
