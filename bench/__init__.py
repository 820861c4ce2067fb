"""Benchmarks: `python -m bench NAME`; every record states its bound and the fraction reached."""
