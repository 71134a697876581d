# Decides whether the CUDA backend is built: sets PAGEDKV_HAVE_CUDA, and enables the language when it is. Then
# PAGEDKV_REAL_ARCHITECTURES lists what machine code is made for (80;90;...), and PAGEDKV_CUDA_FLAGS what nvcc needs for it besides
# CMAKE_CUDA_ARCHITECTURES.
set(PAGEDKV_HAVE_CUDA OFF)
if(NOT PAGEDKV_ENABLE_CUDA STREQUAL "OFF")
  # nvcc's usual place is often not on PATH.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc CACHE FILEPATH "CUDA compiler")
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90 CACHE STRING
      "Default: code for sm_80, sm_90 and (from nvcc 12.8 on) sm_100, and PTX that later devices translate")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(PAGEDKV_HAVE_CUDA ON)
    set(PAGEDKV_REAL_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES})
    list(FILTER PAGEDKV_REAL_ARCHITECTURES EXCLUDE REGEX "-virtual$")
    list(TRANSFORM PAGEDKV_REAL_ARCHITECTURES REPLACE "-real$" "")
    if(CMAKE_CUDA_ARCHITECTURES STREQUAL "80-real;90" AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      # From sm_90's PTX, which holds no branch that sm_100 would take otherwise: a third pass of nvcc's front end, the slow part,
      # would add a third to the time.
      set(PAGEDKV_CUDA_FLAGS --generate-code=arch=compute_90,code=[sm_100])
      list(APPEND PAGEDKV_REAL_ARCHITECTURES 100)
    endif()
  elseif(PAGEDKV_ENABLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PAGEDKV_ENABLE_CUDA=ON, but no nvcc was found: put it on PATH, set CUDACXX, or use AUTO or OFF")
  endif()
endif()
message(STATUS "pagedkv: CUDA backend ${PAGEDKV_HAVE_CUDA}")
