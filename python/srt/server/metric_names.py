"""Every metric by name (without `srt:`), what it says, and what other servers call it."""

from __future__ import annotations

GAUGES = {
    "num_running_reqs": "Sequences in the step.",
    "num_queue_reqs": "Sequences that wait.",
    "num_living_reqs": "Sequences not yet answered.",
    "num_used_tokens": "KV slots of running sequences.",
    "num_cached_tokens": "KV slots of cached prefixes.",
    "max_total_num_tokens": "KV slots there are.",
    "token_usage": "Used share of the KV pool.",
    "gen_throughput": "Tokens per second over the last second.",
    "cache_hit_rate": "Share of all prompt tokens found cached.",
    "new_token_ratio": "Share of max_new_tokens that admission expects to be used.",
}
COUNTERS = {
    "prompt_tokens_total": "Prompt tokens of sequences that ran and ended.",
    "cached_tokens_total": "Of these, found in the prefix cache.",
    "generation_tokens_total": "Tokens generated.",
    "num_retracted_total": "Retractions: sequences that gave their KV back and waited again.",
    "num_aborted_requests_total": "Sequences that were aborted.",
    "num_queue_full_total": "Requests refused with 429.",
}
_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
_PER_TOKEN_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)
_WHOLE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Arrival to first token.", _FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Gaps between a sequence's tokens.", _PER_TOKEN_S),
    "time_per_output_token_seconds": ("A sequence's mean gap between tokens.", _PER_TOKEN_S),
    "e2e_request_latency_seconds": ("Arrival to last token.", _WHOLE_S),
    "queue_time_seconds": ("From the engine's queue into a step.", _QUEUE_S),
    "request_prompt_tokens": ("Prompt length of completed sequences.", _TOKENS),
    "request_generation_tokens": ("Answer length of completed sequences.", _TOKENS),
}
PER_WORKER = {
    "resident_memory_bytes": ("gauge", "Resident memory of an HTTP worker."),
    "cpu_seconds_total": ("counter", "CPU time of an HTTP worker."),
}

_VLLM = {
    "num_running_reqs": "num_requests_running",
    "num_queue_reqs": "num_requests_waiting",
    "token_usage": "kv_cache_usage_perc",
    "prompt_tokens_total": "prompt_tokens_total",
    "generation_tokens_total": "generation_tokens_total",
    "num_retracted_total": "num_preemptions_total",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_latency_seconds",
    "time_per_output_token_seconds": "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "queue_time_seconds": "request_queue_time_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
}
# vLLM counts the tokens that were looked up, and those found.
_ALSO_VLLM = {
    "prompt_tokens_total": "prefix_cache_queries_total",
    "cached_tokens_total": "prefix_cache_hits_total",
}
_SGLANG = (
    "num_running_reqs",
    "num_queue_reqs",
    "num_used_tokens",
    "max_total_num_tokens",
    "token_usage",
    "gen_throughput",
    "cache_hit_rate",
    "new_token_ratio",
    "prompt_tokens_total",
    "cached_tokens_total",
    "generation_tokens_total",
    "num_requests_total",
    "num_aborted_requests_total",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "queue_time_seconds",
)


def _aliases() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {
        "num_retracted_total": ("sglang:num_retracted_reqs_total",)
    }
    for name in _SGLANG:
        found[name] = (f"sglang:{name}",)
    for table in (_VLLM, _ALSO_VLLM):
        for name, theirs in table.items():
            found[name] = (*found.get(name, ()), f"vllm:{theirs}")
    return found


ALIASES = _aliases()
