"""How kernels are timed: replays of a CUDA graph that launches them several times."""

from __future__ import annotations

from collections.abc import Callable

import torch


def replay_us(launch: Callable[[int], object], launches: int, replays: int = 7) -> list[float]:
    """Microseconds of a launch, a sample a replay; the first replay is not counted.

    launch: gets its index in the graph, to walk over inputs that miss L2.
    """
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            launch(i)
    samples = []
    for _ in range(replays + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(1e3 * begin.elapsed_time(end) / launches)
    return samples[1:]
