# SPDX-License-Identifier: Apache-2.0
# qf_embed(TARGET FILE NAME): the file's bytes, ended by a NUL, as `const char NAME[]`.
function(qf_embed target file name)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/${file})
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${name}.c)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(READ ${source} hex HEX)
    string(REGEX REPLACE "(................)" "\\1\n" hex "${hex}")
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
    file(CONFIGURE OUTPUT ${out} @ONLY CONTENT
"/* Made from @file@. */
extern const char @name@[];
const char @name@[] = {
@bytes@0};
")
    target_sources(${target} PRIVATE ${out})
endfunction()
