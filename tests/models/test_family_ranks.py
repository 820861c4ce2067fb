"""Every family on two ranks over gloo, against its reference and against one rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.checkpoints import ALL, Cache
from models.ranks import Outputs, run_ranks
from models.renamed import write_presharded
from models.runner import load, random_tokens, relative_error
from srt.errors import LoadError

PROMPTS = [random_tokens(n, seed=n) for n in (1, 2, 5, 16, 17, 24, 40, 61)]
NUM_NEW = 64
PRESHARDED = "Grok1, pre-sharded"
CASES = (*ALL, PRESHARDED)


@pytest.fixture(scope="module")
def presharded(checkpoints: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presharded")
    write_presharded(checkpoints["Grok1ModelForCausalLM"].folder, folder, 2)
    return folder


@pytest.fixture(scope="module")
def two_ranks(
    checkpoints: Cache, presharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Outputs, Outputs]]:
    folders = [*(checkpoints[family].folder for family in ALL), presharded]
    out = tmp_path_factory.mktemp("ranks")
    first, second = run_ranks(2, folders, out, prompts=PROMPTS, num_new=NUM_NEW)
    return dict(zip(CASES, zip(first, second, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(
    checkpoints: Cache, two_ranks: dict[str, tuple[Outputs, Outputs]], case: str
) -> None:
    checkpoint = checkpoints["Grok1ModelForCausalLM" if case == PRESHARDED else case]
    first, second = two_ranks[case]
    assert relative_error(first.logits, checkpoint.logits(PROMPTS[-1])) < 1e-4
    for prompt, tokens in zip(PROMPTS, first.tokens, strict=True):
        assert len(tokens) == NUM_NEW
        checkpoint.assert_greedy(prompt, tokens)
    assert first.tokens == second.tokens
    assert torch.equal(first.logits, second.logits)
    one = load(checkpoint.folder)
    assert first.num_params < 0.75 * sum(p.numel() for p in one.model.parameters())


def test_a_set_for_other_ranks_is_refused(presharded: Path) -> None:
    with pytest.raises(
        LoadError, match=r"is cut for 2 ranks \(-000.bin, -001.bin\): --tp-size must"
    ):
        load(presharded)
