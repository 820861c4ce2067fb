"""Load generators behind `python -m srt.bench_serving` and `python -m srt.bench_latency`."""
