"""Text to token ids and back, from a checkpoint's files; no torch, no checkpoint code."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from srt.errors import LoadError
from srt.text.gguf_vocab import read_gguf_tokenizer
from srt.text.pieces import build_pieces, strips_leading_space


class Backend(Protocol):
    """What encodes: `tokenizers.Tokenizer`, or the checkpoint's own Python tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


class FastBackend:
    """The `tokenizers` library."""

    def __init__(self, fast: tokenizers.Tokenizer) -> None:
        self._fast = fast

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is known of the tokens.

    pieces: bytes by token id. special: ids that skip_special_tokens hides. added: ids beside the
    trained vocabulary. eos_ids: ids that end an answer. named: `bos_token`, `eos_token`, … by name.
    """

    pieces: list[bytes]
    special: frozenset[int]
    added: frozenset[int]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    named: dict[str, str] = field(default_factory=dict)
    strips_leading_space: bool = False
    adds_bos: bool = False
    adds_eos: bool = False


class Tokenizer:
    """Encodes prompts and knows the bytes of every token."""

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, chat_template: str | None = None
    ) -> None:
        self._backend = backend
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
        """Token ids of `text`, with the beginning and end tokens that the tokenizer adds."""
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens)
        if not add_special_tokens:
            return ids
        known = self.vocabulary
        if known.adds_bos and known.bos_id is not None and ids[:1] != [known.bos_id]:
            ids = [known.bos_id, *ids]
        if known.adds_eos and known.eos_ids and (not ids or ids[-1] not in known.eos_ids):
            ids = [*ids, known.eos_ids[0]]
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
        return Tokenizer(backend, vocabulary, _chat_template(path, config))
    file = path / "tokenizer.json"
    if not file.exists():
        others = [p.name for p in path.glob("*token*")]
        raise LoadError(
            f"{path} has no tokenizer.json ({', '.join(others) or 'no tokenizer files at all'}); "
            "--tokenizer-mode slow runs the checkpoint's Python tokenizer"
        )
    fast = tokenizers.Tokenizer.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    _add_missing(fast, config)
    return Tokenizer(
        FastBackend(fast), _fast_vocabulary(fast, path, config), _chat_template(path, config)
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; nothing where there is no file. Raises LoadError."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise LoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} must hold a JSON object")
    return value


def model_eos_ids(path: Path) -> tuple[int, ...]:
    """Ids that end an answer, as generation_config.json and config.json say."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(path / name).get("eos_token_id")
        if given is not None:
            return tuple(given) if isinstance(given, list) else (int(given),)
    return ()


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
    named = _named_tokens(path, config)
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
        named=named,
        strips_leading_space=strips_leading_space(decoder),
        adds_bos=bool(config.get("add_bos_token", False)),
        adds_eos=bool(config.get("add_eos_token", False)),
    )


def _vocabulary(
    path: Path, config: dict[str, Any], pieces: list[bytes], specials: Sequence[int]
) -> Vocabulary:
    """For a Python tokenizer, which told the bytes of each id itself."""
    named = _named_tokens(path, config)
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
        named=named,
    )


def _named_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    named: dict[str, str] = {}
    for source in (read_json(path / "special_tokens_map.json"), config):
        for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"):
            token = source.get(name)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                named[name] = token
    return named


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = read_json(path / "chat_template.json").get("chat_template")
    template = template or config.get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default")
    return template
