# How every target of the project is compiled: language level, warnings, sanitizers, what a library shows.
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
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE
    # A fused product and sum would round once where the kernels' arithmetic rounds twice.
    $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;${pagedkv_warnings};${pagedkv_sanitizers}>
    # CMake 3.25 does not know C++20 for nvcc 13, so the flag is passed by hand.
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra>)
  target_link_options(${target} PRIVATE ${pagedkv_sanitizers})
endfunction()

# pagedkv_library(TARGET NAME): one that is installed, as pagedkv::NAME. Shared, it shows what the public headers mark PAGEDKV_PUBLIC,
# and nothing that templates of other libraries leave behind; it finds the libraries it needs beside itself.
function(pagedkv_library target name)
  set(exported ${PROJECT_SOURCE_DIR}/cmake/exported-symbols.map)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ON VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR} INSTALL_RPATH "$ORIGIN" LINK_DEPENDS ${exported})
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "SHARED_LIBRARY")
    target_link_options(${target} PRIVATE "LINKER:--version-script=${exported}")
  endif()
endfunction()
