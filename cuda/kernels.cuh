/* SPDX-License-Identifier: Apache-2.0 */
/* The device code behind device.h. */
#ifndef QF_CUDA_KERNELS_CUH
#define QF_CUDA_KERNELS_CUH

#include <cuda_runtime.h>

#include "cuda/device.h"

/* Uploads the tables. Once for every context, before the first launch. */
cudaError_t qf_cuda_kernels_init();
cudaError_t qf_cuda_kernels_launch(cudaStream_t stream,
                                   const struct qf_cuda_launch *launch);

#endif
