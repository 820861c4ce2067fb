# Turns on CUDA where nvcc is found; SRT_CUDA=ON makes a missing nvcc an error.
include(CheckLanguage)
set(CMAKE_CUDA_ARCHITECTURES "${SRT_CUDA_ARCHITECTURES}")
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(SRT_WITH_CUDA ON)
elseif(SRT_CUDA STREQUAL "ON")
    message(
        FATAL_ERROR
        "SRT_CUDA=ON, but no nvcc was found: set CUDACXX or use SRT_CUDA=AUTO"
    )
else()
    message(STATUS "No nvcc: building the CPU part alone")
endif()
