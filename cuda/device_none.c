/* SPDX-License-Identifier: Apache-2.0 */
/* The device of builds without CUDA: there is none, so nothing past the probe is ever
 * called. */
#include "cuda/device.h"

int qf_cuda_device_probe(int device, bool shared_only, struct qf_err *err)
{
    (void)shared_only;
    return qf_err_set(err, -ENODEV,
                      "device cuda:%d: this program was built without CUDA", device);
}

const char *qf_cuda_device_problem(void)
{
    return "built without CUDA";
}

int qf_cuda_device_enter(int device)
{
    (void)device;
    return -EIO;
}

void qf_cuda_device_reset(void) {}

int qf_cuda_device_alloc(size_t size, void **out)
{
    (void)size, (void)out;
    return -EIO;
}

void qf_cuda_device_free(void *data)
{
    (void)data;
}

int qf_cuda_pinned_alloc(size_t size, void **out)
{
    (void)size, (void)out;
    return -EIO;
}

void qf_cuda_pinned_free(void *data)
{
    (void)data;
}

int qf_cuda_register(void *data, size_t size, bool read_only)
{
    (void)data, (void)size, (void)read_only;
    return -EIO;
}

void qf_cuda_unregister(void *data)
{
    (void)data;
}

int qf_cuda_queue_new(qf_cuda_queue **out)
{
    (void)out;
    return -EIO;
}

void qf_cuda_queue_free(qf_cuda_queue *queue)
{
    (void)queue;
}

int qf_cuda_copy_in(qf_cuda_queue *queue, void *to_device, const void *from_host,
                    size_t size)
{
    (void)queue, (void)to_device, (void)from_host, (void)size;
    return -EIO;
}

int qf_cuda_copy_out(qf_cuda_queue *queue, void *to_host, const void *from_device,
                     size_t size)
{
    (void)queue, (void)to_host, (void)from_device, (void)size;
    return -EIO;
}

int qf_cuda_run(qf_cuda_queue *queue, const struct qf_cuda_launch *launch)
{
    (void)queue, (void)launch;
    return -EIO;
}

int qf_cuda_wait(qf_cuda_queue *queue)
{
    (void)queue;
    return -EIO;
}
