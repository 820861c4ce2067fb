# The header dlpack.h (DLPack 1.3), from the PyPI package apache-tvm-ffi.
if(NOT SRT_DLPACK_INCLUDE)
    execute_process(
        COMMAND
            "${Python_EXECUTABLE}" -c
            "import importlib.util, pathlib; s = importlib.util.find_spec('tvm_ffi'); print(next(pathlib.Path(s.submodule_search_locations[0]).rglob('dlpack/dlpack.h')).parent.parent)"
        OUTPUT_VARIABLE SRT_DLPACK_INCLUDE
        OUTPUT_STRIP_TRAILING_WHITESPACE
        COMMAND_ERROR_IS_FATAL ANY
    )
endif()
add_library(srt_dlpack INTERFACE)
target_include_directories(srt_dlpack SYSTEM INTERFACE "${SRT_DLPACK_INCLUDE}")
