# Compiler cache, used when present.
find_program(SRT_CCACHE ccache)
if(SRT_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${SRT_CCACHE}")
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${SRT_CCACHE}")
endif()
