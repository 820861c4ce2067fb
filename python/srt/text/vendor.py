"""Tokenizers that checkpoints describe by a vocabulary and Python code: the code is ours here.

Qwen 1, DBRX, GLM-4 and Grok bring tiktoken vocabularies; Llama, InternLM 2, ChatGLM 2 and 3 and
Grok-1 SentencePiece models. Nothing of a checkpoint is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from srt.errors import LoadError
from srt.text.checkpoint_files import (
    added_tokens,
    chat_template,
    model_eos_ids,
    named_tokens,
    read_json,
    shown_tokens,
)
from srt.text.sentencepiece_vocab import SentencePieceBackend, SentencePieceModel
from srt.text.tiktoken_vocab import (
    ONE_DIGIT,
    THREE_DIGITS,
    TiktokenBackend,
    is_ranks_file,
    make_encoding,
    pieces_of,
    read_ranks,
    read_tok_json,
)
from srt.text.vendor_templates import CHATGLM2, CHATGLM3, DBRX, GROK2, QWEN
from srt.text.vocabulary import Backend, Vocabulary

_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(205)),
)
_GPT4_SPECIAL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
_DBRX_CHAT = {"<|im_start|>": 100278, "<|im_end|>": 100279}
# In ChatGLM's order, behind the SentencePiece vocabulary. ChatGLM 2 has rows for the roles, too.
_CHATGLM_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_ADDS_BOS = {"LlamaTokenizer", "CodeLlamaTokenizer", "InternLM2Tokenizer", "GemmaTokenizer", ""}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a `Tokenizer` is made of."""

    backend: Backend
    vocabulary: Vocabulary
    chat_template: str | None


@dataclass(frozen=True, slots=True)
class _Source:
    """A checkpoint folder and its tokenizer_config.json."""

    folder: Path
    config: dict[str, Any]

    @property
    def tokenizer_class(self) -> str:
        """Without the suffix of fast tokenizers; "": not said."""
        return str(self.config.get("tokenizer_class") or "").removesuffix("Fast")

    def finish(
        self,
        backend: Backend,
        pieces: list[bytes],
        special: Mapping[str, int],
        *,
        named: Mapping[str, str] | None = None,
        ends: tuple[str, ...] = (),
        template: str | None = None,
        strips_leading_space: bool = False,
        adds_bos: bool = False,
    ) -> Parts:
        """Names and ends from the folder's files over what the family is known to have."""
        names = {**(named or {}), **named_tokens(self.folder, self.config)}
        ids = {name: special[text] for name, text in names.items() if text in special}
        own = ids.get("eos_token")
        more = [special[text] for text in ends if text in special]
        if own is not None:
            more.append(own)
        vocabulary = Vocabulary(
            pieces=pieces,
            special=frozenset(
                i for text, i in special.items() if text not in shown_tokens(self.config)
            ),
            added=frozenset(special.values()),
            eos_ids=tuple(dict.fromkeys((*model_eos_ids(self.folder), *more))),
            bos_id=ids.get("bos_token"),
            own_eos_id=own,
            named=names,
            strips_leading_space=strips_leading_space,
            adds_bos=bool(self.config.get("add_bos_token", adds_bos)),
            adds_eos=bool(self.config.get("add_eos_token", False)),
        )
        return Parts(backend, vocabulary, chat_template(self.folder, self.config) or template)


def open_vendor_tokenizer(folder: Path, config: dict[str, Any]) -> Parts | None:
    """The tokenizer of a folder without tokenizer.json; None if there is none we know.

    Raises:
        LoadError: a vocabulary that cannot be read.
    """
    source = _Source(folder, config)
    model, tok_json = folder / "tokenizer.model", folder / "tokenizer.tok.json"
    if source.tokenizer_class == "TiktokenTokenizerWrapper":
        return _open_dbrx(source)
    if (folder / "qwen.tiktoken").exists():
        return _open_qwen(source, folder / "qwen.tiktoken")
    if tok_json.exists():
        return _open_grok2(source, tok_json)
    if not model.exists():
        return None
    if is_ranks_file(model):
        return _open_glm4(source, model)
    if source.tokenizer_class == "ChatGLMTokenizer" or _model_type(folder) == "chatglm":
        return _open_chatglm(source, model)
    return _open_sentencepiece(source, model)


def _model_type(folder: Path) -> str:
    return str(read_json(folder / "config.json").get("model_type") or "")


def _open_qwen(source: _Source, file: Path) -> Parts:
    """Qwen 1: NFC, digits one by one, specials behind the ranks; chats end with <|im_end|>."""
    ranks = read_ranks(file)
    special = {text: len(ranks) + i for i, text in enumerate(_QWEN_SPECIAL)}
    backend = TiktokenBackend(make_encoding(file, ONE_DIGIT, ranks, special), composes=True)
    return source.finish(
        backend,
        pieces_of(ranks, special),
        special,
        named={"eos_token": "<|endoftext|>"},
        ends=("<|endoftext|>", "<|im_end|>"),
        template=QWEN,
    )


def _open_dbrx(source: _Source) -> Parts:
    """DBRX: GPT-4's vocabulary by name; from a file in the folder, or as tiktoken finds it."""
    name = source.config.get("encoding_name")
    if name is None:
        name = tiktoken.encoding_name_for_model(source.config.get("model_name", "gpt-4"))
    file = source.folder / f"{name}.tiktoken"
    if file.exists():
        ranks, special, pattern = read_ranks(file), dict(_GPT4_SPECIAL), THREE_DIGITS
    else:
        base = _known_encoding(name, file)
        ranks, special = base._mergeable_ranks, dict(base._special_tokens)
        pattern = base._pat_str
    added = added_tokens(source.folder, source.config)
    special |= added or _DBRX_CHAT
    backend = TiktokenBackend(make_encoding(file, pattern, ranks, special))
    end = "<|endoftext|>"
    return source.finish(
        backend,
        pieces_of(ranks, special),
        special,
        named={"bos_token": end, "eos_token": end, "unk_token": end},
        ends=("<|im_end|>",),
        template=DBRX,
    )


def _known_encoding(name: str, file: Path) -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:
        raise LoadError(
            f"the vocabulary {name} is neither at {file} nor can tiktoken fetch it ({error}): put "
            "it there, set TIKTOKEN_CACHE_DIR, or name a --tokenizer-path with a tokenizer.json"
        ) from error


def _open_glm4(source: _Source, file: Path) -> Parts:
    """GLM-4: specials as listed in tokenizer_config.json; prompts begin with [gMASK]<sop>."""
    ranks = read_ranks(file)
    special = added_tokens(source.folder, source.config)
    missing = [text for text in ("[gMASK]", "<sop>") if text not in special]
    if missing:
        raise LoadError(
            f"{source.folder}/tokenizer_config.json lists no {' and '.join(missing)} in "
            "added_tokens_decoder, which GLM-4's prompts begin with"
        )
    prefix = (special["[gMASK]"], special["<sop>"])
    backend = TiktokenBackend(make_encoding(file, THREE_DIGITS, ranks, special), prefix)
    return source.finish(
        backend,
        pieces_of(ranks, special),
        special,
        named={"eos_token": "<|endoftext|>"},
        ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    )


def _open_grok2(source: _Source, file: Path) -> Parts:
    """Grok's own JSON; answers end with <|separator|> or <|eos|>."""
    ranks, special = read_tok_json(file)
    backend = TiktokenBackend(make_encoding(file, ONE_DIGIT, ranks, special))
    return source.finish(
        backend,
        pieces_of(ranks, special),
        special,
        named={"eos_token": "<|eos|>"},
        ends=("<|separator|>", "<|eos|>"),
        template=GROK2,
    )


def _open_chatglm(source: _Source, file: Path) -> Parts:
    """ChatGLM 2 and 3: nine tokens behind the model's; prompts begin with [gMASK] sop.

    `sop` and `eop` are letters that words hold (philosophy), so text names them only behind
    [gMASK].
    """
    model = SentencePieceModel(file)
    own = {text: model.size + i for i, text in enumerate((*_CHATGLM_SPECIAL, *_CHATGLM_ROLES))}
    special = {**model.control_tokens(), **own}
    prefix = (own["[gMASK]"], own["sop"])
    in_text = {t: i for t, i in special.items() if t not in ("sop", "eop", "<unk>")}
    backend = _ChatGlmBackend(SentencePieceBackend(model.data, in_text, prefix), prefix)
    pieces = model.pieces() + [text.encode() for text in own]
    names = (source.folder.name, read_json(source.folder / "config.json").get("_name_or_path"))
    is_third = any(re.search("chatglm3", str(name), re.IGNORECASE) for name in names)
    return source.finish(
        backend,
        pieces,
        special,
        named={"bos_token": "<s>", "eos_token": "</s>"},
        ends=("</s>", "<|user|>", "<|observation|>"),
        template=CHATGLM3 if is_third else CHATGLM2,
        strips_leading_space=model.strips_leading_space(),
    )


class _ChatGlmBackend:
    """Reads `[gMASK]sop`, as templates write it, as the two tokens."""

    def __init__(self, backend: SentencePieceBackend, prefix: tuple[int, int]) -> None:
        self._backend = backend
        self._prefix = list(prefix)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        begin = "[gMASK]sop"
        if not text.startswith(begin):
            return self._backend.encode(text, add_special_tokens=add_special_tokens)
        return self._prefix + self._backend.encode(text[len(begin) :], add_special_tokens=False)


def _open_sentencepiece(source: _Source, file: Path) -> Parts:
    """Llama, InternLM 2, Grok-1: the model's own tokens, and those that the files add."""
    model = SentencePieceModel(file)
    special = {**model.control_tokens(), **added_tokens(source.folder, source.config)}
    pieces = model.pieces()
    by_piece = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    named = named_tokens(source.folder, source.config)
    for text in named.values():
        if text not in special and text.encode() in by_piece:
            special[text] = by_piece[text.encode()]
    last = max(special.values(), default=-1)
    pieces += [b""] * (last + 1 - len(pieces))
    for text, token_id in special.items():
        pieces[token_id] = text.encode()
    own = {
        name: pieces[i].decode()
        for name, i in (("bos_token", model.bos_id), ("eos_token", model.eos_id))
        if i >= 0
    }
    is_legacy = source.config.get("legacy") is not False
    is_llama = source.tokenizer_class in _ADDS_BOS and not _model_type(source.folder).startswith(
        "grok"
    )
    return source.finish(
        SentencePieceBackend(model.data, special, is_legacy=is_legacy),
        pieces,
        special,
        named=own,
        strips_leading_space=model.strips_leading_space(),
        adds_bos=is_llama,
    )
