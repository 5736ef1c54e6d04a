/* SPDX-License-Identifier: Apache-2.0 */
/* device.h with the CUDA runtime (linked statically; without a driver every call fails,
 * and the probe says so).
 *
 * Waiting sleeps in the driver: the processors are for others, and a batch is longer
 * than a wake-up. Errors are of two kinds: what says that something was refused
 * (memory, a registration) leaves the context as it was; everything else is taken for
 * the end of the context, for that is what a failed kernel or a lost device is. */
#include "cuda/device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda/kernels.cuh"

/* Compute capability 7.5: the oldest that we build for. */
#define CAPABILITY_MIN 75

struct qf_cuda_queue {
    cudaStream_t stream;
    cudaEvent_t done;
};

static thread_local char problem[160];

static pthread_mutex_t ready_lock = PTHREAD_MUTEX_INITIALIZER;
static bool ready; /* the context has its tables */

/* Notes what went wrong in `what`, clears it, and gives our code for it. */
static int check(const char *what, cudaError_t error)
{
    if (error == cudaSuccess)
        return 0;
    snprintf(problem, sizeof problem, "%s: %s", what, cudaGetErrorString(error));
    (void)cudaGetLastError();
    switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
        return -ENOMEM;
    default:
        return -EIO;
    }
}

extern "C" const char *qf_cuda_device_problem(void)
{
    return problem;
}

static int capability_of(int device)
{
    int major = 0;
    int minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) !=
            cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) !=
            cudaSuccess)
        return 0;
    return major * 10 + minor;
}

/* A card may be closed to programs, or to all but the first: then taking it up would
 * keep the model out. */
static int check_mode(int device, bool shared_only, struct qf_err *err)
{
    int mode = cudaComputeModeDefault;
    if (cudaDeviceGetAttribute(&mode, cudaDevAttrComputeMode, device) != cudaSuccess)
        (void)cudaGetLastError();
    if (mode == cudaComputeModeProhibited)
        return qf_err_set(err, -ENODEV,
                          "device cuda:%d: its compute mode lets no program use it",
                          device);
    if (mode != cudaComputeModeDefault && shared_only)
        return qf_err_set(err, -ENODEV,
                          "device cuda:%d: its compute mode lets one process use it, "
                          "which is for the model",
                          device);
    return 0;
}

extern "C" int qf_cuda_device_probe(int device, bool shared_only, struct qf_err *err)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        int driver = 0;
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
            return qf_err_set(err, -ENODEV,
                              "device cuda:%d: this machine has no NVIDIA driver",
                              device);
        return qf_err_set(err, -ENODEV, "device cuda:%d: %s", device,
                          cudaGetErrorString(error));
    }
    if (device < 0 || device >= count)
        return qf_err_set(err, -ENODEV, "device cuda:%d: this machine has %d CUDA %s",
                          device, count, count == 1 ? "device" : "devices");
    int capability = capability_of(device);
    if (capability < CAPABILITY_MIN)
        return qf_err_set(err, -ENODEV,
                          "device cuda:%d: compute capability %d.%d is too old: at "
                          "least %d.%d is needed",
                          device, capability / 10, capability % 10, CAPABILITY_MIN / 10,
                          CAPABILITY_MIN % 10);
    return check_mode(device, shared_only, err);
}

/* What the device takes the flags of, before its context is made. */
static cudaError_t make_ready(int device)
{
    cudaError_t error = cudaInitDevice(device, cudaDeviceScheduleBlockingSync,
                                       cudaInitDeviceFlagsAreValid);
    if (error == cudaSuccess)
        error = cudaSetDevice(device);
    return error != cudaSuccess ? error : qf_cuda_kernels_init();
}

extern "C" int qf_cuda_device_enter(int device)
{
    pthread_mutex_lock(&ready_lock);
    cudaError_t error = ready ? cudaSetDevice(device) : make_ready(device);
    ready = ready || error == cudaSuccess;
    pthread_mutex_unlock(&ready_lock);
    return check("taking the device up", error);
}

extern "C" void qf_cuda_device_reset(void)
{
    pthread_mutex_lock(&ready_lock);
    ready = false;
    (void)cudaDeviceReset();
    (void)cudaGetLastError();
    pthread_mutex_unlock(&ready_lock);
}

extern "C" int qf_cuda_device_alloc(size_t size, void **out)
{
    return check("device memory", cudaMalloc(out, size));
}

extern "C" void qf_cuda_device_free(void *data)
{
    (void)cudaFree(data);
}

extern "C" int qf_cuda_pinned_alloc(size_t size, void **out)
{
    return check("pinned memory", cudaHostAlloc(out, size, cudaHostAllocDefault));
}

extern "C" void qf_cuda_pinned_free(void *data)
{
    (void)cudaFreeHost(data);
}

extern "C" int qf_cuda_register(void *data, size_t size, bool read_only)
{
    cudaError_t error = cudaHostRegister(data, size,
                                         read_only ? cudaHostRegisterReadOnly
                                                   : cudaHostRegisterDefault);
    int rc = check("registering memory", error);
    switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorNotSupported:
    case cudaErrorOperatingSystem:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorNotPermitted:
    case cudaErrorUnknown: /* what the driver makes of some mappings */
        return -EINVAL;
    default:
        return rc;
    }
}

extern "C" void qf_cuda_unregister(void *data)
{
    if (cudaHostUnregister(data) != cudaSuccess)
        (void)cudaGetLastError();
}

extern "C" int qf_cuda_queue_new(qf_cuda_queue **out)
{
    qf_cuda_queue *queue = (qf_cuda_queue *)calloc(1, sizeof *queue);
    if (queue == NULL)
        return -ENOMEM;
    int rc = check("a stream",
                   cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking));
    if (rc == 0) {
        rc = check("an event",
                   cudaEventCreateWithFlags(&queue->done, cudaEventBlockingSync |
                                                              cudaEventDisableTiming));
        if (rc != 0)
            (void)cudaStreamDestroy(queue->stream);
    }
    if (rc != 0) {
        free(queue);
        return rc;
    }
    *out = queue;
    return 0;
}

extern "C" void qf_cuda_queue_free(qf_cuda_queue *queue)
{
    if (queue == NULL)
        return;
    (void)cudaEventDestroy(queue->done);
    (void)cudaStreamDestroy(queue->stream);
    free(queue);
}

extern "C" int qf_cuda_copy_in(qf_cuda_queue *queue, void *to_device,
                               const void *from_host, size_t size)
{
    return check("copying to the device",
                 cudaMemcpyAsync(to_device, from_host, size, cudaMemcpyHostToDevice,
                                 queue->stream));
}

extern "C" int qf_cuda_copy_out(qf_cuda_queue *queue, void *to_host,
                                const void *from_device, size_t size)
{
    return check("copying from the device",
                 cudaMemcpyAsync(to_host, from_device, size, cudaMemcpyDeviceToHost,
                                 queue->stream));
}

extern "C" int qf_cuda_run(qf_cuda_queue *queue, const struct qf_cuda_launch *launch)
{
    return check("a kernel", qf_cuda_kernels_launch(queue->stream, launch));
}

extern "C" int qf_cuda_wait(qf_cuda_queue *queue)
{
    int rc = check("the device", cudaEventRecord(queue->done, queue->stream));
    return rc != 0 ? rc : check("the device", cudaEventSynchronize(queue->done));
}
