"""The latency benchmark with a tiny model in a real engine: rows, records, skipped sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

import tiny_tokenizer
from srt.bench_latency import main
from srt.tiny import write_tiny


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, vocab_size=512)
    tiny_tokenizer.write_checkpoint(folder, tiny_tokenizer.byte_level())
    small = ["--device", "cpu", "--dtype", "float32", "--max-total-tokens", "2048"]
    return ["--model", str(folder), *small, "--log-level", "warning"]


def test_rows_and_records(flags: list[str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "rows.jsonl"
    sizes = ["--batch", "1", "3", "--input", "16", "5000", "--output", "7", "--run-name", "mine"]
    assert main([*flags, *sizes, "--result-filename", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Prefill. latency") == 2
    assert shown.count("median latency") == 2
    assert shown.count("Decode.  latency") == 10
    assert shown.count("skipped") == 2
    assert "skipped batch 1, input 5000, output 7: a sequence holds" in shown
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["run_name"], first["batch_size"], second["batch_size"]) == ("mine", 1, 3)
    assert first["total_latency"] > first["prefill_latency"] > 0
    assert second["median_decode_throughput"] == pytest.approx(3 / second["median_decode_latency"])


def test_split_prefills_say_the_same(flags: list[str], capsys: Any) -> None:
    assert main([*flags, "--correct"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nsame\n") == 3
    assert "4 of them cached" in shown


def test_what_is_wrong_is_said(flags: list[str], capsys: Any) -> None:
    assert main(["--batch", "1"]) == 2
    assert "--model-path is required" in capsys.readouterr().err
    assert main([*flags, "--output", "0"]) == 2
    assert "must be positive" in capsys.readouterr().err


def test_a_chart_shows_all_rows_of_the_file(flags: list[str], tmp_path: Path, capsys: Any) -> None:
    out, chart = str(tmp_path / "rows.jsonl"), tmp_path / "out.png"
    drawn = ["--result-filename", out, "--graph-filename", str(chart)]
    assert main([*flags, "--batch", "1", "2", "--input", "8", "--output", "3", *drawn]) == 0
    assert f"drawn in {chart}" in capsys.readouterr().out
    whole = imread(chart)
    assert whole.std() > 0.05, "something is drawn"
    query = "select run_name, batch_size, prefill_latency from results where batch_size < 9"
    assert main([*drawn, "--graph-sql", query]) == 0, "without a model: the file alone"
    assert imread(chart).shape == whole.shape
    assert (imread(chart) != whole).any()
    for bad, why in (
        ("select 1 from results", "2 rows of 1 columns"),
        ("select nonsense", "no such column"),
        ("select run_name, 1, 2 from results where 0", "0 rows of 3 columns"),
    ):
        assert main([*drawn, "--graph-sql", bad]) == 2
        assert why in capsys.readouterr().err
    assert main(["--graph-filename", str(chart)]) == 2
    assert "--graph-filename needs --result-filename" in capsys.readouterr().err
