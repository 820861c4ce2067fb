#include "cpu/threads.h"

#include <omp.h>

namespace srt::cpu {

bool release_threads() { return omp_pause_resource_all(omp_pause_hard) == 0; }

}  // namespace srt::cpu
