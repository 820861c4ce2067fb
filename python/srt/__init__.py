"""SRT: an LLM serving runtime with a C++/CUDA core."""

__version__ = "0.1.0"
