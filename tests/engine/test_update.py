"""New weights in a running engine: in place, after what runs, all or nothing, on every rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.driver import Driver, assert_greedy, driver, greedy, random_prompts, to_bytes
from engine.test_process import start
from srt.channel import AbortRequest, Call, CallResult, GenerateRequest, StepEvents
from srt.errors import InternalServerError
from srt.tiny import write_tiny
from srt.types import FinishReason

PROMPTS = random_prompts(6, 40, 320, seed=5)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    """Another tiny Llama's folder and model; and a folder whose last tensor is misshapen."""
    folder = tmp_path_factory.mktemp("other")
    model = write_tiny(folder, seed=7)
    broken = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    last = sorted(tensors)[-1]
    save_file({**tensors, last: torch.zeros(3)}, broken / "model.safetensors")
    return folder, model, broken


def update(path: Path | str, load_format: str | None = None, call_id: int = 1) -> Call:
    values = {"model_path": str(path), "load_format": load_format}
    args = {name: msgspec.Raw(msgspec.msgpack.encode(v)) for name, v in values.items()}
    return Call(call_id=call_id, method="update_weights", args=args)


def results(run: Driver, *calls: Call) -> list[CallResult]:
    """The answers to calls that come in one turn to an idle engine."""
    return [r for r in run.engine.turn(list(calls)) if isinstance(r, CallResult)]


def assert_served(run: Driver, model: Any) -> None:
    for prompt, output in zip(PROMPTS, run.run(PROMPTS, greedy(12)), strict=True):
        assert_greedy(model, prompt, output.tokens)


def test_weights_change_in_place(tiny: tuple[Path, Any], others: tuple[Path, Any, Path]) -> None:
    """Also with decode tapes and a warm cache, which must not outlive the old weights."""
    with driver(tiny[0]) as run:
        assert_served(run, tiny[1])
        assert results(run, update(others[0])) == [CallResult(call_id=1, ok=True)]
        assert run.engine.state()["num_cached_tokens"] == 0
        assert_served(run, others[1])
        assert results(run, update(tiny[0]))[0].ok
        assert_served(run, tiny[1])


def test_running_requests_end_first_and_new_ones_wait(
    tiny: tuple[Path, Any], others: tuple[Path, Any, Path]
) -> None:
    def request(seq_id: int, num_tokens: int) -> GenerateRequest:
        ids = to_bytes(PROMPTS[seq_id])
        return GenerateRequest(seq_id=seq_id, input_ids=ids, sampling=greedy(num_tokens))

    tokens: dict[int, list[int]] = {1: [], 2: [], 3: []}
    ends: list[tuple[int, int]] = []
    order: list[str] = []
    with driver(tiny[0]) as run:
        due = {0: [request(1, 20)], 2: [update(others[0]), request(2, 10), request(3, 10)]}
        due[3] = [AbortRequest([3]), update(others[0], call_id=2)]
        for turn in range(100):
            for record in run.engine.turn(list(due.get(turn, []))):
                if isinstance(record, CallResult):
                    order.append(f"call {record.call_id} {'ok' if record.ok else record.message}")
                elif isinstance(record, StepEvents):
                    rows = zip(record.seq_ids, record.tokens, record.finish, strict=True)
                    for seq_id, token, finish in rows:
                        tokens[seq_id] += [token] if token >= 0 else []
                        if finish:
                            ends.append((seq_id, finish))
                            order.append(f"end {seq_id}")
            if turn > 3 and not run.engine.is_busy:
                break
    assert_greedy(tiny[1], PROMPTS[1], tokens[1])
    assert_greedy(others[1], PROMPTS[2], tokens[2])
    assert tokens[3] == []
    assert sorted(ends) == [
        (1, FinishReason.LENGTH), (2, FinishReason.LENGTH), (3, FinishReason.ABORT)
    ]  # fmt: skip
    assert order[0] == "call 2 the weights are being updated already"
    assert order.index("end 1") < order.index("call 1 ok") < order.index("end 2")


def test_what_does_not_fit_changes_nothing(
    tiny: tuple[Path, Any], others: tuple[Path, Any, Path], tmp_path: Path
) -> None:
    write_tiny(tmp_path / "wide", intermediate_size=128)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    for file in others[0].iterdir():
        data = file.read_bytes()
        is_weights = file.suffix == ".safetensors"
        (tmp_path / "cut" / file.name).write_bytes(data[: len(data) // 2] if is_weights else data)
    with driver(tiny[0]) as run:
        before = {name: p.clone() for name, p in run.engine.worker.model.named_parameters()}
        for path, words in (
            (others[2], "must have the shape"),
            (tmp_path / "wide", "intermediate_size is 128, not 96"),
            (tmp_path / "empty", "config.json does not exist"),
            (tmp_path / "cut", "not a readable safetensors file"),
            (tmp_path / "gone", "does not exist"),
        ):
            (result,) = results(run, update(path))
            assert not result.ok
            assert words in result.message
        for name, param in run.engine.worker.model.named_parameters():
            assert torch.equal(param, before[name])
        assert_served(run, tiny[1])


def test_a_copy_that_fails_is_rolled_back(
    tiny: tuple[Path, Any], others: tuple[Path, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails between the check and the copy: the old weights are loaded again."""
    with driver(tiny[0]) as run:
        real = run.engine._updater._load
        calls: list[Path] = []

        def failing(source: Path, load_format: str) -> None:
            calls.append(source)
            if len(calls) == 1:
                with torch.inference_mode():
                    run.engine.worker.model.embed.weight.zero_()
                raise OSError("the disk is gone")
            real(source, load_format)

        monkeypatch.setattr(run.engine._updater, "_load", failing)
        (result,) = results(run, update(others[0]))
        assert (result.ok, result.message) == (False, "the disk is gone")
        assert calls == [others[0], tiny[0]]
        assert_served(run, tiny[1])


def test_dummy_weights_give_way_to_real_ones(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], load_format="dummy") as run:
        assert results(run, update(tiny[0]))[0].ok
        assert_served(run, tiny[1])
        assert results(run, update(tiny[0], "dummy"))[0].ok
        with pytest.raises(AssertionError):
            assert_served(run, tiny[1])


@pytest.mark.parametrize("ranks", [{"tp_size": 2}], ids=str)
def test_all_ranks_or_none(
    tiny: tuple[Path, Any], others: tuple[Path, Any, Path], ranks: dict[str, int]
) -> None:
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}

    def assert_model(engine: Any, model: Any) -> None:
        outputs = engine.generate(input_ids=PROMPTS, sampling_params=params)
        for prompt, result in zip(PROMPTS, outputs, strict=True):
            assert_greedy(model, prompt, result["token_ids"])

    with start(tiny[0], **ranks) as engine:
        assert_model(engine, tiny[1])
        with pytest.raises(InternalServerError, match="must have the shape"):
            engine.update_weights(str(others[2]))
        assert_model(engine, tiny[1])
        engine.update_weights(str(others[0]))
        assert_model(engine, others[1])


def test_other_ends_of_text_are_no_other_model(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, 5]}))
    with driver(tiny[0]) as run:
        assert results(run, update(tmp_path / "copy"))[0].ok


def test_quantized_weights_are_quantized_again(
    tiny: tuple[Path, Any], others: tuple[Path, Any, Path]
) -> None:
    """--quantization fp8: what an update leaves is what a start would have made."""
    with driver(others[0], quantization="fp8") as fresh:
        expected = dict(fresh.engine.worker.model.named_parameters())
    with driver(tiny[0], quantization="fp8") as run:
        assert results(run, update(others[0]))[0].ok
        found = dict(run.engine.worker.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, param in found.items():
        assert torch.equal(param.float(), expected[name].float())


@pytest.mark.parametrize("family", ["Qwen2MoeForCausalLM", "DeepseekV2ForCausalLM"])
def test_experts_and_latents_change_in_place(tmp_path: Path, family: str) -> None:
    models = [write_tiny(tmp_path / f"{seed}", family, seed=seed) for seed in range(2)]
    with driver(tmp_path / "0") as run:
        assert_served(run, models[0])
        assert results(run, update(tmp_path / "1"))[0].ok
        assert_served(run, models[1])
