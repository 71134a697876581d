# How every target of the project is compiled: language level, warnings, sanitizers.
set(pagedkv_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor)
if(PAGEDKV_WARNINGS_AS_ERRORS)
  list(APPEND pagedkv_warnings -Werror)
endif()

set(pagedkv_sanitizers "")
if(PAGEDKV_SANITIZE)
  set(pagedkv_sanitizers -fsanitize=${PAGEDKV_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()

function(pagedkv_compile target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${target} PRIVATE
    # A fused product and sum would round once where the kernels' arithmetic rounds twice.
    $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;${pagedkv_warnings};${pagedkv_sanitizers}>
    # CMake 3.25 does not know C++20 for nvcc 13, so the flag is passed by hand.
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra>)
  target_link_options(${target} PRIVATE ${pagedkv_sanitizers})
endfunction()
