# SPDX-License-Identifier: Apache-2.0
# mount(8) looks for helpers in /sbin only. Those below /usr are there; those below
# /usr/local are linked; for any other prefix, or without the right, the command is told.
if(CMAKE_INSTALL_PREFIX MATCHES "^/(usr)?$" OR NOT "$ENV{DESTDIR}" STREQUAL "")
    return()
endif()
foreach(name mount.quantfs mount.fuse.quantfs)
    set(helper ${CMAKE_INSTALL_PREFIX}/sbin/${name})
    set(rc 1)
    if(CMAKE_INSTALL_PREFIX STREQUAL "/usr/local")
        execute_process(COMMAND ln -sfn ${helper} /sbin/${name} RESULT_VARIABLE rc
                        OUTPUT_QUIET ERROR_QUIET)
    endif()
    if(rc EQUAL 0)
        message(STATUS "Linked: /sbin/${name}")
    else()
        message(STATUS "For mount(8), as root: ln -s ${helper} /sbin/${name}")
    endif()
endforeach()
