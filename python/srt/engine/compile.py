"""`--enable-torch-compile`: decode forwards by torch.compile, which CUDA graphs then record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srt.batch import ForwardBatch
from srt.config import Settings
from srt.errors import ConfigError
from srt.models.decoder import Decoder
from srt.parallel import TensorParallel


def check_compiles(settings: Settings, tp: TensorParallel, device: torch.device) -> None:
    """Raises ConfigError where `--enable-torch-compile` has nothing to compile for."""
    if not settings.enable_torch_compile:
        return
    if device.type != "cuda" or settings.disable_cuda_graph:
        raise ConfigError(
            "--enable-torch-compile compiles the steps that CUDA graphs record: it needs a GPU, "
            "without --disable-cuda-graph"
        )
    if tp.size > 1:
        raise ConfigError(f"--enable-torch-compile is served by one GPU, not --tp-size {tp.size}")


def decode_logits(model: Decoder, batch: ForwardBatch) -> Tensor:
    """What of a decode step is compiled: token ids to logits [T, vocab]."""
    return model.compute_logits(model(batch))


@dataclass(slots=True)
class CompiledDecode:
    """The decode forward of batches up to `max_bs`, compiled at first use of each size.

    seconds: spent in first uses so far.
    """

    model: Decoder
    max_bs: int
    seconds: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def logits(self, batch: ForwardBatch) -> Tensor:
        """[T, vocab].

        Raises:
            ConfigError: the model's step cannot be compiled as a whole.
        """
        compiled = torch.compile(decode_logits, fullgraph=True, dynamic=False)
        if batch.num_seqs in self.sizes:
            logits: Tensor = compiled(self.model, batch)
            return logits
        begin = time.perf_counter()
        try:
            with torch._dynamo.config.patch(recompile_limit=len(self.sizes) + 8):
                logits = compiled(self.model, batch)
        except (torch._dynamo.exc.TorchDynamoException, KeyError) as e:
            raise ConfigError(
                f"--enable-torch-compile: {self.model.config.architecture} does not compile as a "
                f"whole: {e}"
            ) from e
        self.seconds += time.perf_counter() - begin
        self.sizes.append(batch.num_seqs)
        return logits
