# Installs the libraries, the headers of their file sets, and a config package for find_package(pagedkv).
include(CMakePackageConfigHelpers)

set_target_properties(pagedkv PROPERTIES EXPORT_NAME pagedkv)
install(TARGETS pagedkv_kernels pagedkv_allocator pagedkv EXPORT pagedkvTargets FILE_SET HEADERS)
set(pagedkv_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pagedkv)
install(EXPORT pagedkvTargets NAMESPACE pagedkv:: DESTINATION ${pagedkv_config_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/pagedkvConfig.cmake.in ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake
  INSTALL_DESTINATION ${pagedkv_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake ${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake
  DESTINATION ${pagedkv_config_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
