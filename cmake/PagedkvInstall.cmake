# Installs the libraries, the headers of their file sets, and what finds them, all or the kernels alone: a config package for
# find_package(pagedkv), and pkg-config's files. Both hold paths relative to themselves, so the prefix may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(pagedkv_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pagedkv)
set_target_properties(pagedkv PROPERTIES EXPORT_NAME pagedkv)
install(TARGETS pagedkv_kernels EXPORT pagedkv_kernels FILE_SET HEADERS)
install(TARGETS pagedkv_allocator pagedkv EXPORT pagedkv_allocator FILE_SET HEADERS)
foreach(part kernels allocator)
  install(EXPORT pagedkv_${part} FILE pagedkv_${part}.cmake NAMESPACE pagedkv:: DESTINATION ${pagedkv_config_dir})
endforeach()

# A static library leaves the CUDA runtime to be linked by the program.
set(pagedkv_needs_cuda OFF)
set(pagedkv_cuda_libraries "")
get_target_property(pagedkv_type pagedkv_kernels TYPE)
if(PAGEDKV_HAVE_CUDA AND pagedkv_type STREQUAL "STATIC_LIBRARY")
  set(pagedkv_needs_cuda ON)
  set(pagedkv_cuda_libraries "${CUDA_cudart_static_LIBRARY} -ldl -lrt -lpthread")
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/pagedkvConfig.cmake.in ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake
  INSTALL_DESTINATION ${pagedkv_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake ${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake
  DESTINATION ${pagedkv_config_dir})

set(pagedkv_pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  file(RELATIVE_PATH up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" pagedkv_pc_prefix "\${pcfiledir}/${up}")
endif()
foreach(folder LIBDIR INCLUDEDIR)
  cmake_path(APPEND pagedkv_pc_${folder} "\${prefix}" "${CMAKE_INSTALL_${folder}}")  # an absolute folder stays what it is
endforeach()
foreach(package pagedkv pagedkv-kernels)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/${package}.pc.in ${PROJECT_BINARY_DIR}/${package}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${package}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
