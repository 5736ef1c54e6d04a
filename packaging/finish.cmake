# SPDX-License-Identifier: Apache-2.0
# Run by cpack on the installed tree before the package is made.
if(NOT CPACK_GENERATOR STREQUAL "DEB")
    return()
endif()
set(usr ${CPACK_TEMPORARY_DIRECTORY}/usr)
set(doc ${usr}/share/doc/quantfs)
file(COPY ${CPACK_QUANTFS_SOURCE_DIR}/debian/copyright DESTINATION ${doc})
file(WRITE ${doc}/changelog "quantfs (${CPACK_PACKAGE_VERSION}) unstable; urgency=medium

  * See CHANGELOG.md.

 -- ${CPACK_PACKAGE_CONTACT}  ${CPACK_QUANTFS_DATE}
")
file(GLOB pages ${usr}/share/man/man*/*)
execute_process(COMMAND gzip -9n ${pages} ${doc}/changelog COMMAND_ERROR_IS_FATAL ANY)
