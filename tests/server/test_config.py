"""Settings: every way in gives the same record, and every wrong value is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from srt.config import Settings, always_so, parse_settings, settings_from_json, settings_json
from srt.errors import ConfigError
from srt.foreign_flags import ALWAYS_SO, REFUSED_FLAGS


def parse(*argv: str, **environ: str) -> Settings:
    return parse_settings(["--model-path", "m", *argv], environ)


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--tp", "2"], "tp_size", 2),
        (["--tensor-parallel-size", "4"], "tp_size", 4),
        (["--dp", "3"], "dp_size", 3),
        (["--data-parallel-size", "3"], "dp_size", 3),
        (["--nccl-init", "node0:5000"], "dist_init_addr", "node0:5000"),
        (["--nccl-init-addr", "node0:5000"], "dist_init_addr", "node0:5000"),
        (["--mem-frac", "0.5"], "mem_fraction_static", 0.5),
        (["--tokenizer", "t"], "tokenizer_path", "t"),
        (["--max-num-reqs", "8"], "max_running_requests", 8),
        (["--context-len", "4096"], "context_length", 4096),
        (["--json-model-override-args", '{"a": 1}'], "json_model_override_args", {"a": 1}),
        (["--cors-allow-origins", "a", "b"], "cors_allow_origins", ("a", "b")),
        (["--disable-radix-cache"], "disable_radix_cache", True),
    ],
)
def test_a_flag_and_its_aliases_set_the_field(argv: list[str], field: str, value: object) -> None:
    assert getattr(parse(*argv), field) == value


def test_model_is_an_alias() -> None:
    assert parse_settings(["--model", "x"], {}).model_path == "x"


def test_abbreviations_that_are_not_declared_are_refused() -> None:
    with pytest.raises(SystemExit):
        parse("--disable-radix")


def test_the_environment_counts_where_no_flag_does() -> None:
    assert parse(SRT_PORT="8000").port == 8000
    assert parse("--port", "9", SRT_PORT="8000").port == 9
    assert parse(SGLANG_USE_MODELSCOPE="true").use_modelscope
    assert parse(SRT_ENABLE_PRIORITY_SCHEDULING="1").enable_priority_scheduling


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (["--port", "70000"], {}, "--port is 70000; it must be at most 65535"),
        (["--dtype", "int3"], {}, "--dtype is 'int3'; it must be one of auto"),
        (["--mem-fraction-static", "1.5"], {}, "--mem-fraction-static is 1.5"),
        (["--tp", "3", "--nnodes", "2", "--dist-init-addr", "a:1"], {}, "multiple of --nnodes"),
        (["--nnodes", "2", "--tp", "2"], {}, "--dist-init-addr must name"),
        (["--node-rank", "1"], {}, "--node-rank is 1; it must be below"),
        (["--dist-init-addr", "nowhere"], {}, "must be host:port"),
        (["--page-size", "24"], {}, "--page-size is 24; it must be a power of two"),
        (["--json-model-override-args", "{"], {}, "--json-model-override-args is not JSON"),
        (["--load-format", "npcache"], {}, "--load-format npcache is refused"),
        (["--grammar-backend", "xgrammar"], {}, "xgrammar is refused: grammars are compiled by"),
        ([], {"SRT_PORT": "x"}, "$SRT_PORT is 'x'; it must be int"),
        ([], {"SRT_SELF_CHECK": "maybe"}, "$SRT_SELF_CHECK is 'maybe'"),
    ],
)
def test_a_wrong_value_is_named(argv: list[str], environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **environ)
    assert said in str(caught.value)


@pytest.mark.parametrize("option", sorted(REFUSED_FLAGS))
def test_a_flag_we_cannot_honour_says_why(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is refused: {REFUSED_FLAGS[option][:20]}"):
        parse(option, "x")


def test_flags_that_always_hold_are_accepted_and_said() -> None:
    for option in ALWAYS_SO:
        parse(option)
        assert always_so([option]) == [f"{option} changes nothing: {ALWAYS_SO[option]}"]


def test_the_model_path_is_required() -> None:
    with pytest.raises(ConfigError, match="--model-path is required"):
        parse_settings([], {})


def test_settings_survive_the_way_to_another_process() -> None:
    settings = parse("--tp", "2", "--api-key", "k", "--cors-allow-origins", "*")
    assert settings_from_json(settings_json(settings)) == settings


def test_secrets_are_not_shown() -> None:
    settings = parse("--api-key", "hush")
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.public())


def test_every_field_has_its_own_default_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert "--" + field.name.replace("_", "-") in shown


def test_memory_share_shrinks_with_ranks() -> None:
    assert [parse("--tp", str(n)).mem_fraction for n in (1, 2, 4, 8, 16)] == [
        0.88,
        0.87,
        0.85,
        0.83,
        0.79,
    ]
