"""Other weights for a running model: checked whole before the first is touched, or refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist

from srt.config import Settings
from srt.engine.startup import Rank, find_model, read_config
from srt.errors import ConfigError, LoadError
from srt.model_config import ModelConfig
from srt.parallel import TensorParallel
from srt.weights.loader import check_weights, load_weights

log = logging.getLogger("srt.engine")

# What a checkpoint may say differently: it changes nothing that is built from the config.
FREE_FIELDS = ("dtype", "default_sampling", "bos_token_id", "eos_token_ids")


class UpdateRefused(Exception):
    """The weights were not updated; those served before still are. The message says why."""


class WeightUpdater:
    """Replaces a rank's weights in place, on every rank or on none."""

    def __init__(self, settings: Settings, rank: Rank) -> None:
        self._settings = settings
        self._rank = rank
        self._model = rank.worker.model
        self._tp = rank.tp
        self._served = (rank.source, settings.load_format)

    def update(self, model_path: str, load_format: str | None) -> None:
        """Serves the weights of `model_path`; no step may be in flight.

        All ranks read and check their whole share first, and go on only if all can. Should a copy
        fail even so, everybody loads the weights that were served before.

        Raises:
            UpdateRefused: nothing has changed.  LoadError: the old weights cannot be read any more.
        """
        begin = time.perf_counter()
        wanted = load_format or ("auto" if self._served[1] == "dummy" else self._served[1])
        sources: list[Path] = []
        self._together(lambda: sources.append(self._checked(model_path, wanted)))
        try:
            self._together(lambda: self._load(sources[0], wanted))
        except UpdateRefused:
            log.warning("loading the weights that were served before, from %s", self._served[0])
            self._load(*self._served)
            raise
        self._served = (sources[0], wanted)
        log.info("weights of %s are served after %.1f s", model_path, time.perf_counter() - begin)

    def _checked(self, model_path: str, load_format: str) -> Path:
        """Where the weights lie; every byte of this rank's share has been read."""
        needs_weights = load_format != "dummy"
        source = find_model(self._settings, model_path, with_weights=needs_weights)
        check_same_model(read_config(self._settings, source), self._model.config, source)
        rules = self._model.weight_table()
        check_weights(self._model, rules, source, self._tp, load_format=load_format)
        return source

    def _load(self, source: Path, load_format: str) -> None:
        rules = self._model.weight_table()
        with torch.inference_mode():
            load_weights(self._model, rules, source, self._tp, load_format=load_format)

    def _together(self, action: Callable[[], None]) -> None:
        """Runs `action` on every rank. Raises UpdateRefused on all if it failed on one."""
        message = ""
        try:
            action()
        except (LoadError, ConfigError, OSError) as e:
            message = str(e)
        failed = first_failure(self._tp, bool(message))
        if failed is not None:
            raise UpdateRefused(message or f"rank {failed} failed; its log says why")


def first_failure(tp: TensorParallel, has_failed: bool) -> int | None:
    """The first rank that has failed, the same answer on every rank; None: all went well."""
    if tp.size == 1:
        return 0 if has_failed else None
    first = torch.tensor([tp.rank if has_failed else tp.size])
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=tp.host_group)
    return int(first) if int(first) < tp.size else None


def check_same_model(new: ModelConfig, served: ModelConfig, source: Path) -> None:
    """Raises LoadError naming what differs, where other weights need another model."""
    for name in (field.name for field in fields(ModelConfig) if field.name not in FREE_FIELDS):
        ours, theirs = getattr(served, name), getattr(new, name)
        if ours != theirs:
            raise LoadError(
                f"{source} is another model than the one that runs: {name} is {theirs}, not {ours}"
            )
