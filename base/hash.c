/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hash.h"

#include <xxhash.h>

uint64_t qf_hash64(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

struct qf_hash128 qf_hash128(const void *data, size_t size)
{
    XXH128_hash_t h = XXH3_128bits(data, size);
    return (struct qf_hash128){.low = h.low64, .high = h.high64};
}

/* The state itself, under a name that keeps xxHash's header in this file. */
qf_hash64_stream *qf_hash64_stream_new(void)
{
    XXH3_state_t *state = XXH3_createState();
    if (state != NULL)
        XXH3_64bits_reset(state);
    return (qf_hash64_stream *)state;
}

void qf_hash64_stream_free(qf_hash64_stream *stream)
{
    XXH3_freeState((XXH3_state_t *)stream);
}

void qf_hash64_stream_add(qf_hash64_stream *stream, const void *data, size_t size)
{
    XXH3_64bits_update((XXH3_state_t *)stream, data, size);
}

uint64_t qf_hash64_stream_value(const qf_hash64_stream *stream)
{
    return XXH3_64bits_digest((const XXH3_state_t *)stream);
}
