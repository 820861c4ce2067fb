// The OpenMP threads that loops leave waiting for the next loop.
#pragma once

namespace srt::cpu {

// Ends those of the calling thread; false if they could not be. Each thread that forks has a pool
// of its own, and with more threads than cores libgomp hardly spins between loops, so that every
// fork of the other pools pays a wake-up.
bool release_threads();

}  // namespace srt::cpu
