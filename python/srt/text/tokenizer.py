"""Text to token ids and back, from a checkpoint's files; no torch, no checkpoint code."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from srt.errors import LoadError
from srt.text.checkpoint_files import chat_template, model_eos_ids, named_tokens, read_json
from srt.text.gguf_vocab import read_gguf_tokenizer
from srt.text.pieces import build_pieces, strips_leading_space
from srt.text.vendor import open_vendor_tokenizer
from srt.text.vocabulary import Backend, Vocabulary


class FastBackend:
    """The `tokenizers` library."""

    def __init__(self, fast: tokenizers.Tokenizer) -> None:
        self._fast = fast

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def to_json(self) -> str:
        """The tokenizer as `tokenizers.Tokenizer.from_str` reads it."""
        text: str = self._fast.to_str()
        return text


class Tokenizer:
    """Encodes prompts and knows the bytes of every token."""

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, chat_template: str | None = None
    ) -> None:
        self._backend = backend
        begun = backend.encode("", add_special_tokens=True)
        self._backend_adds_bos = vocabulary.bos_id is not None and begun[:1] == [vocabulary.bos_id]
        self.vocabulary = vocabulary
        self.pieces = vocabulary.pieces
        self.longest_piece = max(map(len, vocabulary.pieces), default=1)
        self.special = vocabulary.special
        self.eos_ids = vocabulary.eos_ids
        self.bos_id = vocabulary.bos_id
        self.chat_template = chat_template

    def cover(self, vocab_size: int) -> None:
        """Let ids up to the model's (padded) vocabulary stand for nothing instead of failing."""
        self.pieces.extend([b""] * (vocab_size - len(self.pieces)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the beginning and end tokens that the tokenizer adds.

        A text that begins with the beginning token itself gets no second one.
        """
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens)
        if not add_special_tokens:
            return ids
        known = self.vocabulary
        if self._backend_adds_bos and ids[1:2] == [known.bos_id]:
            ids = ids[1:]
        if known.adds_bos and known.bos_id is not None and ids[:1] != [known.bos_id]:
            ids = [known.bos_id, *ids]
        end = known.own_eos_id if known.own_eos_id is not None else next(iter(known.eos_ids), None)
        if known.adds_eos and end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        return ids

    def added_around(self) -> tuple[list[str], list[str]]:
        """The special tokens that `encode` puts before and behind a text."""
        bare, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        last = len(whole) - len(bare) + 1
        at = next((i for i in range(max(last, 0)) if whole[i : i + len(bare)] == bare), None)
        if at is None:
            return [], []
        around = (whole[:at], whole[at + len(bare) :])
        before, after = ([self.token_text(i) for i in ids] for ids in around)
        return before, after

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; bytes that are no UTF-8 show as U+FFFD."""
        hidden = self.special if skip_special_tokens else frozenset()
        pieces = self.pieces
        text = b"".join([pieces[i] for i in ids if i not in hidden]).decode("utf-8", "replace")
        if self.vocabulary.strips_leading_space and text.startswith(" "):
            return text[1:]
        return text

    def to_json(self) -> str:
        """The tokenizer for the `tokenizers` library; empty where it is another's."""
        return self._backend.to_json() if isinstance(self._backend, FastBackend) else ""

    def token_text(self, token_id: int) -> str:
        """One token as text, special tokens included."""
        return self.pieces[token_id].decode("utf-8", "replace")


def load_tokenizer(path: Path, *, mode: str = "auto", trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer in a checkpoint folder or GGUF file.

    Raises:
        LoadError: no tokenizer there, or one that only runs in slow mode.
    """
    if path.is_file():
        return _from_gguf(path)
    config = read_json(path / "tokenizer_config.json")
    if mode == "slow":
        module = importlib.import_module("srt.text.python_tokenizer")  # brings torch along
        backend, vocab, specials = module.open_python_tokenizer(path, trust_remote_code)
        vocabulary = _vocabulary(path, config, vocab, specials)
        return Tokenizer(backend, vocabulary, chat_template(path, config))
    file = path / "tokenizer.json"
    if not file.exists():
        parts = open_vendor_tokenizer(path, config)
        if parts is not None:
            return Tokenizer(parts.backend, parts.vocabulary, parts.chat_template)
        others = [p.name for p in path.glob("*token*")]
        raise LoadError(
            f"{path} has no tokenizer.json, tokenizer.model or .tiktoken vocabulary that is known "
            f"({', '.join(others) or 'no tokenizer files at all'}); --tokenizer-mode slow runs a "
            "Python tokenizer of transformers"
        )
    fast = tokenizers.Tokenizer.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    _add_missing(fast, config)
    return Tokenizer(
        FastBackend(fast), _fast_vocabulary(fast, path, config), chat_template(path, config)
    )


def _from_gguf(path: Path) -> Tokenizer:
    found = read_gguf_tokenizer(path)
    fast = tokenizers.Tokenizer.from_str(found.tokenizer_json)
    decoder = json.loads(found.tokenizer_json)["decoder"]
    named = {name: fast.id_to_token(token_id) or "" for name, token_id in found.named_ids.items()}
    added = fast.get_added_tokens_decoder()
    vocabulary = Vocabulary(
        pieces=build_pieces(fast.get_vocab(with_added_tokens=True), decoder),
        special=frozenset(i for i, token in added.items() if token.special),
        added=frozenset(added),
        eos_ids=found.eos_ids,
        bos_id=found.named_ids.get("bos_token"),
        own_eos_id=found.named_ids.get("eos_token"),
        named=named,
        strips_leading_space=strips_leading_space(decoder),
        adds_bos=found.adds_bos,
        adds_eos=found.adds_eos,
    )
    return Tokenizer(FastBackend(fast), vocabulary, found.chat_template)


def _add_missing(fast: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Tokens that older checkpoints name in tokenizer_config.json alone."""
    for token_id, spec in sorted(
        config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])
    ):
        content = spec["content"]
        if fast.token_to_id(content) is not None:
            continue
        token = tokenizers.AddedToken(content, special=bool(spec.get("special")), normalized=False)
        fast.add_tokens([token])
        if fast.token_to_id(content) != int(token_id):
            raise LoadError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, tokenizer.json has "
                f"room for it at {fast.token_to_id(content)}"
            )


def _fast_vocabulary(fast: tokenizers.Tokenizer, path: Path, config: dict[str, Any]) -> Vocabulary:
    added = fast.get_added_tokens_decoder()
    specials = {i for i, token in added.items() if token.special}
    decoder = json.loads(fast.decoder.__getstate__()) if fast.decoder is not None else None
    vocab = fast.get_vocab(with_added_tokens=True)
    named = named_tokens(path, config)
    known = {name: vocab[text] for name, text in named.items() if text in vocab}
    eos = model_eos_ids(path)
    if "eos_token" in known and known["eos_token"] not in eos:
        eos = (*eos, known["eos_token"])
    return Vocabulary(
        pieces=build_pieces(vocab, decoder),
        special=frozenset(specials | set(known.values())),
        added=frozenset(added),
        eos_ids=eos,
        bos_id=known.get("bos_token"),
        own_eos_id=known.get("eos_token"),
        named=named,
        strips_leading_space=strips_leading_space(decoder),
        adds_bos=bool(config.get("add_bos_token", False)),
        adds_eos=bool(config.get("add_eos_token", False)),
    )


def _vocabulary(
    path: Path, config: dict[str, Any], pieces: list[bytes], specials: Sequence[int]
) -> Vocabulary:
    """For a Python tokenizer, which told the bytes of each id itself."""
    named = named_tokens(path, config)
    by_bytes = {pieces[i]: i for i in specials}
    known = {name: by_bytes.get(text.encode()) for name, text in named.items()}
    eos = model_eos_ids(path)
    own = known.get("eos_token")
    if own is not None and own not in eos:
        eos = (*eos, own)
    return Vocabulary(
        pieces=pieces,
        special=frozenset(specials),
        added=frozenset(specials),
        eos_ids=eos,
        bos_id=known.get("bos_token"),
        own_eos_id=own,
        named=named,
    )
