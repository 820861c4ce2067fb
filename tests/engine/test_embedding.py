"""Vectors against transformers, pooled by hand: any batch mix, chunked, with and without cache."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from engine.driver import Driver, assert_greedy, driver, greedy, random_prompts, to_bytes
from engine.test_process import start
from srt.channel import AbortRequest, EmbedRequest, GenerateRequest, StepEvents, ToEngine
from srt.errors import ContextLengthExceeded, InternalServerError, LoadError
from srt.tiny import BASE, FAMILIES, make_hf_model, write_tiny
from srt.types import FinishReason

PROMPTS = random_prompts(100, 60, 320)
Vectors = list[NDArray[np.float32]]


def write_modules(folder: Path, pooling: str, *, normalize: bool = True) -> None:
    """modules.json and 1_Pooling as sentence-transformers writes them."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules[: 3 if normalize else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
    flags |= {"pooling_mode_lasttoken": False, f"pooling_mode_{pooling}": True}
    described = {"word_embedding_dimension": 64, **flags, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(described))


def embed(
    run: Driver, prompts: Sequence[Sequence[int]], arrivals: Sequence[int] | None = None
) -> Vectors:
    """Embeds prompts; prompt i arrives at turn arrivals[i] (none: all at once)."""
    due: dict[int, list[ToEngine]] = {}
    for i, prompt in enumerate(prompts):
        record = EmbedRequest(seq_id=1000 + i, input_ids=to_bytes(prompt))
        due.setdefault(arrivals[i] if arrivals else 0, []).append(record)
    found: dict[int, NDArray[np.float32]] = {}
    for turn in range(5000):
        for record in run.engine.turn(due.pop(turn, [])):
            if isinstance(record, StepEvents):
                take(record, found)
        if not due and not run.engine.is_busy:
            return [found[1000 + i] for i in range(len(prompts))]
    raise AssertionError("not done")


def take(record: StepEvents, found: dict[int, NDArray[np.float32]]) -> None:
    """Files the vectors of one record; each comes with its sequence's only event."""
    for seq_id, token, finish in zip(record.seq_ids, record.tokens, record.finish, strict=True):
        assert (token, finish) == (-1, FinishReason.LENGTH), record.errors
        found[seq_id] = np.frombuffer(record.embeddings[seq_id], "<f4")


def assert_same_direction(ours: Vectors, refs: Sequence[torch.Tensor], least: float) -> None:
    assert len(ours) == len(refs)
    for vector, ref in zip(ours, refs, strict=True):
        a, b = torch.from_numpy(vector.copy()).double(), ref.double()
        assert float(a @ b / (a.norm() * b.norm())) >= least


def references(
    model: Any, prompts: Sequence[Sequence[int]], pool: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """The transformers model's last hidden states, each prompt by itself, pooled."""
    with torch.no_grad():
        return [pool(model(torch.tensor([list(p)])).last_hidden_state[0]) for p in prompts]


@dataclass(frozen=True)
class Case:
    """A family, how its checkpoint is spelled, and how it pools."""

    family: str
    architecture: str = ""  # of a checkpoint without head and prefix; "": as the family's
    pooling: str = ""  # "": no modules.json
    changes: dict[str, Any] | None = None

    def write(self, folder: Path) -> Any:
        """Writes the checkpoint; returns the transformers model without its head."""
        model: Any = make_hf_model(self.family, **(self.changes or {}))
        if self.architecture:
            model.model.config.architectures = [self.architecture]
            model.model.save_pretrained(folder)
        else:
            model.save_pretrained(folder)
        if self.pooling:
            write_modules(folder, self.pooling)
        return model.model


POOL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda states: states[-1],
    "lasttoken": lambda states: states[-1],
    "mean_tokens": lambda states: states.mean(dim=0),
    "cls_token": lambda states: states[0],
}
CASES = [
    Case("MistralForCausalLM", "MistralModel", "lasttoken"),
    Case("LlamaForCausalLM", "LlamaEmbeddingModel"),
    Case("Qwen2ForCausalLM"),
    Case("LlamaForCausalLM", "LlamaModel", "mean_tokens"),
    Case("GemmaForCausalLM", pooling="mean_tokens"),
    Case("LlamaForCausalLM", "LlamaModel", "cls_token"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.architecture or c.family}-{c.pooling}")
def test_vectors_match_transformers(tmp_path: Path, case: Case) -> None:
    """100 prompts in any mix, chunked; a second round finds them cached where pooling allows it."""
    refs = references(case.write(tmp_path), PROMPTS, POOL[case.pooling])
    arrivals = [random.Random(i).randrange(30) for i in range(len(PROMPTS))]
    for settings in ({}, {"chunked_prefill_size": 16}, {"disable_radix_cache": True}):
        with driver(tmp_path, is_embedding=True, **settings) as run:
            assert not run.engine.worker.model.lm_head
            first = embed(run, PROMPTS, arrivals)
            assert_same_direction(first, refs, 1 - 1e-5)
            assert all(abs(float(np.linalg.norm(v)) - 1) < 1e-5 for v in first)
            assert_same_direction(embed(run, PROMPTS), refs, 1 - 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_embeds(tmp_path: Path, family: str) -> None:
    """--is-embedding on a generative checkpoint: no head, the states behind the last norm."""
    model: Any = write_tiny(tmp_path, family)
    base = getattr(model, model.base_model_prefix)
    refs = references(base, PROMPTS[:6], POOL[""])
    with driver(tmp_path, is_embedding=True, chunked_prefill_size=24) as run:
        assert run.engine.worker.model.lm_head is None
        assert_same_direction(embed(run, PROMPTS[:6]), refs, 1 - 1e-5)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
def test_bidirectional_attention(tmp_path: Path, pooling: str) -> None:
    """is_causal false (gte-Qwen2): whole prompts, no cache; not the causal vectors."""
    case = Case("Qwen2ForCausalLM", "Qwen2Model", pooling, {"is_causal": False})
    model = case.write(tmp_path)
    refs = references(bidirectional(model), PROMPTS, POOL[pooling])
    model.config.is_causal = True
    longest = max(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    (causal,) = references(model, [PROMPTS[longest]], POOL[pooling])
    with driver(tmp_path, is_embedding=True, chunked_prefill_size=16) as run:
        vectors = embed(run, PROMPTS)
        assert_same_direction(vectors, refs, 1 - 1e-5)
        assert_same_direction(embed(run, PROMPTS[:5]), refs[:5], 1 - 1e-5)
        assert run.engine.state()["num_cached_tokens"] == 0
    other = torch.from_numpy(vectors[longest].copy())
    assert float(other @ causal / (other.norm() * causal.norm())) < 0.999


def bidirectional(model: Any) -> Callable[[torch.Tensor], Any]:
    """The model with nothing masked."""

    def run(ids: torch.Tensor) -> Any:
        size = ids.shape[1]
        return model(ids, attention_mask=torch.zeros(1, 1, size, size))

    return run


def test_a_generating_engine_embeds_too(tmp_path: Path) -> None:
    """Prompts that are embedded share steps and cache with those that generate."""
    model: Any = write_tiny(tmp_path)
    refs = references(model.model, PROMPTS[:30], POOL[""])
    sampling = greedy(20)
    with driver(
        tmp_path, chunked_prefill_size=32, max_total_tokens=320, init_new_token_ratio=0.0
    ) as run:
        due: dict[int, list[ToEngine]] = {}
        for i, prompt in enumerate(PROMPTS[:30]):
            ids = to_bytes(prompt)
            due.setdefault(i // 4, []).append(EmbedRequest(seq_id=1000 + i, input_ids=ids))
            asked = GenerateRequest(seq_id=i, input_ids=ids, sampling=sampling)
            due.setdefault(i // 3, []).append(asked)
        found: dict[int, NDArray[np.float32]] = {}
        tokens: dict[int, list[int]] = {i: [] for i in range(30)}
        for turn in range(2000):
            for record in run.engine.turn(due.pop(turn, [])):
                if not isinstance(record, StepEvents):
                    continue
                for seq_id, token in zip(record.seq_ids, record.tokens, strict=True):
                    if token >= 0:
                        tokens[seq_id].append(token)
                vectors = record.embeddings.items()
                found |= {seq_id: np.frombuffer(v, "<f4") for seq_id, v in vectors}
            if not due and not run.engine.is_busy:
                break
        assert run.engine.state()["num_retracted"] > 0
    assert_same_direction([found[1000 + i] for i in range(30)], refs, 1 - 1e-5)
    for i, prompt in enumerate(PROMPTS[:30]):
        assert len(tokens[i]) == 20
        assert_greedy(model, prompt, tokens[i])


def test_a_classifier_gives_scores(tmp_path: Path) -> None:
    """LlamaForSequenceClassification: the last token's scores, not normalised."""
    config = transformers.LlamaConfig(**{**BASE, "num_labels": 3})
    torch.manual_seed(0)
    model: Any = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        refs = [model(torch.tensor([p])).logits[0] for p in PROMPTS[:20]]
    with driver(tmp_path, chunked_prefill_size=16) as run:
        vectors = embed(run, PROMPTS[:20])
        info = run.engine._rank.embedding
    assert (info.kind, info.size) == ("scores", 3)
    for vector, ref in zip(vectors, refs, strict=True):
        assert torch.allclose(torch.from_numpy(vector.copy()), ref, rtol=1e-4, atol=1e-5)


def test_refusals_and_ends(tmp_path: Path) -> None:
    """Every request ends once; what cannot be embedded says why."""
    write_tiny(tmp_path)
    write_modules(tmp_path, "mean_tokens")
    with driver(tmp_path) as run:
        record = EmbedRequest(seq_id=1, input_ids=to_bytes([5, 6]))
        (events,) = (r for r in run.engine.turn([record]) if isinstance(r, StepEvents))
        assert events.finish == [FinishReason.ERROR]
        assert "start the server with --is-embedding" in events.errors[1]
    with driver(tmp_path, is_embedding=True, context_length=64) as run:
        outputs = run.run([[1, 2, 3]], greedy())
        assert outputs[0].error == "this model embeds and cannot generate"
        too_long = EmbedRequest(seq_id=7, input_ids=to_bytes([5] * 65))
        (events,) = (r for r in run.engine.turn([too_long]) if isinstance(r, StepEvents))
        assert "prompt has 65 tokens, the context window holds 64" in events.errors[7]
        assert len(embed(run, [[5] * 64])) == 1
        gone = EmbedRequest(seq_id=8, input_ids=to_bytes([5] * 40))
        seen: list[StepEvents] = []
        for records in ([gone, AbortRequest([8])], [], []):
            seen += [r for r in run.engine.turn(records) if isinstance(r, StepEvents)]
        assert [(r.seq_ids, r.finish, r.embeddings) for r in seen] == [
            ([8], [FinishReason.ABORT], {})
        ]
        assert not run.engine.is_busy


def test_unsupported_pooling_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_modules(tmp_path, "max_tokens")
    with pytest.raises(LoadError, match="pooling max is not supported"), driver(tmp_path):
        pass
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(LoadError, match="a module of type Dense"), driver(tmp_path):
        pass


def test_what_looks_ahead_cannot_generate(tmp_path: Path) -> None:
    write_tiny(tmp_path, "Qwen2ForCausalLM", is_causal=False)
    with pytest.raises(LoadError, match="--is-embedding serves it"), driver(tmp_path):
        pass


def test_smollm2_as_an_embedder(smollm2: Path) -> None:
    """A generative checkpoint under --is-embedding: the head is not even read."""
    model: Any = transformers.AutoModel.from_pretrained(smollm2, dtype=torch.float32).eval()
    prompts = random_prompts(12, 40, 49000, seed=3)
    refs = references(model, prompts, POOL[""])
    with driver(smollm2, is_embedding=True, chunked_prefill_size=24) as run:
        assert_same_direction(embed(run, prompts), refs, 1 - 1e-5)


@pytest.mark.parametrize("ranks", [{"tp_size": 2}, {"dp_size": 2}], ids=str)
def test_ranks_and_copies_embed(tmp_path: Path, ranks: dict[str, int]) -> None:
    """srt.llm.Engine.encode over processes, every prompt in its place."""
    case = Case("MistralForCausalLM", "MistralModel", "mean_tokens")
    refs = references(case.write(tmp_path), PROMPTS[:40], POOL[case.pooling])
    with start(tmp_path, is_embedding=True, chunked_prefill_size=32, **ranks) as engine:
        assert ("embedding", "64 numbers, mean of all tokens, L2-normalised") in engine.ready.table
        results = engine.encode(input_ids=PROMPTS[:40])
        one = engine.encode(input_ids=PROMPTS[0])
        with pytest.raises(ContextLengthExceeded, match="prompt has 513 tokens"):
            engine.encode(input_ids=[5] * 513)
        with pytest.raises(InternalServerError, match="embeds and cannot generate"):
            engine.generate(input_ids=[5, 6])
    vectors = [np.asarray(r["embedding"], np.float32) for r in results]
    assert_same_direction(vectors, refs, 1 - 1e-5)
    assert one["embedding"] == pytest.approx(results[0]["embedding"], abs=1e-6)
    assert [r["meta_info"]["prompt_tokens"] for r in results] == [len(p) for p in PROMPTS[:40]]
