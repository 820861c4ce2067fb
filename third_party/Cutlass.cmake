# CUTLASS headers, from the PyPI package nvidia-cutlass.
if(NOT SRT_CUTLASS_INCLUDE)
    execute_process(
        COMMAND
            "${Python_EXECUTABLE}" -c
            "import importlib.util, pathlib; s = importlib.util.find_spec('cutlass_library'); print(pathlib.Path(s.submodule_search_locations[0]) / 'source' / 'include')"
        OUTPUT_VARIABLE SRT_CUTLASS_INCLUDE
        OUTPUT_STRIP_TRAILING_WHITESPACE
        COMMAND_ERROR_IS_FATAL ANY
    )
endif()
add_library(srt_cutlass INTERFACE)
target_include_directories(
    srt_cutlass
    SYSTEM
    INTERFACE "${SRT_CUTLASS_INCLUDE}"
)
