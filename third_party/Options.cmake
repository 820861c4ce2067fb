# Warnings and sanitizers of our own targets: link `srt_options` privately.
add_library(srt_options INTERFACE)
target_compile_options(
    srt_options
    INTERFACE
        $<$<COMPILE_LANGUAGE:CXX>:-Wall
        -Wextra
        -Wconversion
        -Werror>
        $<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings
        -Xcompiler=-Wall,-Wextra>
        $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=--warn-on-spills
        --expt-relaxed-constexpr
        --expt-extended-lambda>
)
if(SRT_SANITIZE)
    target_compile_options(
        srt_options
        INTERFACE
            $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined
            -fno-sanitize-recover=all
            -g>
    )
    target_link_options(srt_options INTERFACE -fsanitize=address,undefined)
endif()
