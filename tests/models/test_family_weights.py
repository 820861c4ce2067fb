"""Loading, family by family: what does not fit is named, and each rank reads its share once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import ALL, Cache
from models.runner import load
from srt.errors import LoadError
from srt.families import load_model_config
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.weights import loader
from srt.weights.checkpoint import Checkpoint, Slice, StoredTensor
from srt.weights.table import HasParts, Split, WeightTable

Weights = dict[str, Tensor]


def rewrite(source: Path, out: Path, change: Callable[[Weights], str]) -> str:
    """A copy of a checkpoint with changed weights; returns what `change` does."""
    shutil.copytree(source, out)
    weights = load_file(out / "model.safetensors")
    named = change(weights)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, out / "model.safetensors"
    )
    return named


def matrices(weights: Weights) -> list[str]:
    """Names in a layer's middle, biggest first: experts and fused matrices are among them."""
    inner = [n for n in weights if ".1." in n and weights[n].dim() > 1]
    return sorted(inner, key=lambda n: (-weights[n].numel(), n))


def drop_one(weights: Weights) -> str:
    name = matrices(weights)[0]
    del weights[name]
    return name


def drop_last(weights: Weights) -> str:
    name = matrices(weights)[-1]
    del weights[name]
    return name


def add_one(weights: Weights) -> str:
    name = f"{matrices(weights)[0]}_extra"
    weights[name] = torch.zeros(3)
    return f"{name} [3]"


def cut_one(weights: Weights) -> str:
    name = matrices(weights)[0]
    weights[name] = weights[name][:, 1:]
    return f"{name} {list(weights[name].shape)}"


@pytest.mark.parametrize("change", [drop_one, drop_last, add_one, cut_one])
@pytest.mark.parametrize("family", ALL)
def test_what_does_not_fit_is_named(
    checkpoints: Cache, tmp_path: Path, family: str, change: Callable[[Weights], str]
) -> None:
    named = rewrite(checkpoints[family].folder, tmp_path / "changed", change)
    with pytest.raises(LoadError) as error:
        load(tmp_path / "changed")
    assert named in str(error.value)


def counted(checkpoint: Checkpoint, reads: list[tuple[str, Slice | None, int]]) -> Checkpoint:
    """The checkpoint, writing down what is read of it."""

    class Counted(Checkpoint):
        def tensors(self):  # type: ignore[no-untyped-def]
            for tensor in checkpoint.tensors():
                yield replace(tensor, read=note(tensor))

    def note(tensor: StoredTensor) -> Callable[[Slice | None], Tensor]:
        def read(cut: Slice | None) -> Tensor:
            value = tensor.read(cut)
            reads.append((tensor.name, cut, value.nbytes))
            return value

        return read

    return Counted(checkpoint.files, checkpoint.file_format)


@pytest.mark.parametrize("family", ALL)
def test_a_rank_reads_each_byte_of_its_share_once(
    checkpoints: Cache, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints[family].folder
    reads: list[tuple[str, Slice | None, int]] = []
    opened = loader.open_checkpoint
    monkeypatch.setattr(loader, "open_checkpoint", lambda *a: counted(opened(*a), reads))
    for rank in range(2):
        reads.clear()
        tp = TensorParallel(rank, 2)
        model = build_model(load_model_config(folder), tp, torch.device("cpu"), torch.float32)
        rules = model.weight_table()
        loader.load_weights(model, rules, folder, tp)
        assert len({(name, cut) for name, cut, _ in reads}) == len(reads)
        assert sum(num_bytes for _, _, num_bytes in reads) == share_bytes(model, rules)


def share_bytes(model: torch.nn.Module, rules: tuple[loader.Rule, ...]) -> int:
    """Bytes of all parameters, without the rows that only pad the vocabulary."""
    table, total = WeightTable(rules), 0
    for name, param in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        rows = param.shape[0]
        if isinstance(owner, HasParts) and any(
            r.split is Split.VOCAB for r in table.rules_of(name)
        ):
            rows = owner.parts[""].size
        total += 4 * rows * math.prod(param.shape[1:])
    return total
