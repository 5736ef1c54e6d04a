/* SPDX-License-Identifier: Apache-2.0 */
/* While nothing is injected a check is one comparison, so that the checks can stay in
 * every build. */
#include "cuda/fault.h"

#include <stdlib.h>
#include <string.h>

#define PREFIX "cuda:"

static const char *const names[QF_CUDA_FAULT_COUNT] = {
    [QF_CUDA_FAULT_DRIVER] = "driver", [QF_CUDA_FAULT_OOM] = "oom",
    [QF_CUDA_FAULT_PINNED] = "pinned", [QF_CUDA_FAULT_REGISTER] = "register",
    [QF_CUDA_FAULT_LAUNCH] = "launch", [QF_CUDA_FAULT_LOST] = "lost",
};

static void parse_one(struct qf_cuda_faults *faults, const char *text, size_t size)
{
    size_t prefix = sizeof PREFIX - 1;
    if (size < prefix || memcmp(text, PREFIX, prefix) != 0)
        return;
    text += prefix;
    size -= prefix;
    const char *at = memchr(text, '@', size);
    size_t name_size = at != NULL ? (size_t)(at - text) : size;
    unsigned long from = at != NULL ? strtoul(at + 1, NULL, 10) : 1;
    for (int i = 0; i < QF_CUDA_FAULT_COUNT; i++)
        if (strlen(names[i]) == name_size && memcmp(text, names[i], name_size) == 0)
            faults->from[i] = from;
}

void qf_cuda_faults_init(struct qf_cuda_faults *faults, const char *text)
{
    *faults = (struct qf_cuda_faults){0};
    pthread_mutex_init(&faults->lock, NULL);
    while (text != NULL) {
        const char *comma = strchr(text, ',');
        parse_one(faults, text, comma != NULL ? (size_t)(comma - text) : strlen(text));
        text = comma != NULL ? comma + 1 : NULL;
    }
}

void qf_cuda_faults_fini(struct qf_cuda_faults *faults)
{
    pthread_mutex_destroy(&faults->lock);
}

bool qf_cuda_fault(struct qf_cuda_faults *faults, enum qf_cuda_fault kind)
{
    if (faults->from[kind] == 0)
        return false;
    pthread_mutex_lock(&faults->lock);
    bool now = ++faults->seen[kind] >= faults->from[kind];
    pthread_mutex_unlock(&faults->lock);
    return now;
}
