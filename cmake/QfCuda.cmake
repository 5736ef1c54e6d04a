# SPDX-License-Identifier: Apache-2.0
# Finds nvcc and compiles the few .cu files with it, as plain objects of a C library: no
# CUDA or C++ language is enabled, so that every program is linked by the C compiler with
# the static CUDA runtime, and needs no NVIDIA library to start.
#
# After qf_cuda_find(): QF_CUDA_FOUND, and why not in QF_CUDA_MISSING.
# qf_cuda_objects(OUT FILE...): the objects, in the variable OUT.

set(QUANTFS_CUDA_ARCHS "" CACHE STRING
    "Compute capabilities to build for, as 90;100 (empty: all that nvcc knows of 75 80 86 89 90 100 120)")

macro(qf_cuda_find)
    set(QF_CUDA_FOUND FALSE)
    find_program(QUANTFS_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH
                 PATH_SUFFIXES bin PATHS /usr/local/cuda/bin /opt/cuda/bin)
    if(NOT QUANTFS_NVCC)
        set(QF_CUDA_MISSING "no nvcc")
    else()
        get_filename_component(nvcc_real "${QUANTFS_NVCC}" REALPATH)
        get_filename_component(nvcc_root "${nvcc_real}/../.." ABSOLUTE)
        find_library(QUANTFS_CUDART cudart_static
                     HINTS "${nvcc_root}/lib64" "${nvcc_root}/lib"
                           "${nvcc_root}/targets/x86_64-linux/lib"
                           "${nvcc_root}/targets/sbsa-linux/lib")
        execute_process(COMMAND "${QUANTFS_NVCC}" --list-gpu-arch RESULT_VARIABLE nvcc_rc
                        OUTPUT_VARIABLE nvcc_archs ERROR_QUIET)
        if(NOT QUANTFS_CUDART)
            set(QF_CUDA_MISSING "no libcudart_static.a beside ${QUANTFS_NVCC}")
        elseif(NOT nvcc_rc EQUAL 0)
            set(QF_CUDA_MISSING "${QUANTFS_NVCC} does not run")
        else()
            qf_cuda_try()
        endif()
    endif()
endmacro()

# nvcc needs a C++ compiler that it likes, which is not said before it is asked.
macro(qf_cuda_try)
    set(probe "${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe")
    file(WRITE "${probe}.cu" "__global__ void k() {}\n#include <cuda_runtime.h>\n")
    execute_process(COMMAND "${QUANTFS_NVCC}" -c "${probe}.cu" -o "${probe}.o"
                    RESULT_VARIABLE nvcc_rc OUTPUT_QUIET ERROR_QUIET)
    if(nvcc_rc EQUAL 0)
        set(QF_CUDA_FOUND TRUE)
    else()
        set(QF_CUDA_MISSING "${QUANTFS_NVCC} cannot compile (has it a C++ compiler?)")
    endif()
endmacro()

# Machine code for each architecture, and PTX of 90 (or the newest) for later ones.
function(qf_cuda_arch_flags out)
    set(wanted ${QUANTFS_CUDA_ARCHS})
    if(NOT wanted)
        foreach(arch 75 80 86 89 90 100 120)
            if(nvcc_archs MATCHES "compute_${arch}[\n\r]")
                list(APPEND wanted ${arch})
            endif()
        endforeach()
    endif()
    set(flags "")
    foreach(arch ${wanted})
        list(APPEND flags -gencode arch=compute_${arch},code=sm_${arch})
    endforeach()
    if("90" IN_LIST wanted)
        set(last 90)
    else()
        list(GET wanted -1 last)
    endif()
    list(APPEND flags -gencode arch=compute_${last},code=compute_${last})
    set(${out} ${flags} PARENT_SCOPE)
endfunction()

function(qf_cuda_objects out)
    qf_cuda_arch_flags(arch_flags)
    # The bytes must not depend on what a compiler thinks is near enough: no fused
    # multiply-add, no flushed denormals, correctly rounded division.
    set(flags -std=c++17 -O3 --fmad=false --prec-div=true --prec-sqrt=true --ftz=false
        -I${PROJECT_SOURCE_DIR} -D_GNU_SOURCE --threads 2
        -Xcompiler -fPIC,-Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics)
    if(QUANTFS_WERROR)
        list(APPEND flags -Werror all-warnings)
    endif()
    set(objects "")
    foreach(file ${ARGN})
        get_filename_component(source "${file}" ABSOLUTE)
        get_filename_component(name "${file}" NAME)
        set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}.o")
        add_custom_command(OUTPUT "${object}"
            COMMAND "${QUANTFS_NVCC}" ${flags} ${arch_flags} -MD -MF "${object}.d"
                    -c "${source}" -o "${object}"
            DEPENDS "${source}" DEPFILE "${object}.d" VERBATIM
            COMMENT "nvcc ${name}")
        list(APPEND objects "${object}")
    endforeach()
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    set(${out} ${objects} PARENT_SCOPE)
endfunction()
