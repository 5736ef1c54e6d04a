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
