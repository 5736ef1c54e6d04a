# SPDX-License-Identifier: Apache-2.0
# Read by cpack for each generator.
if(CPACK_GENERATOR MATCHES "DEB|RPM")
    set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
endif()
