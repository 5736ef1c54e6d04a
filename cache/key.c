/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/key.h"

#include <assert.h>

static_assert(sizeof(struct qf_key) == 16 + 4 * 8 + 6 * 4 + 8, "no padding to hash");

struct qf_hash128 qf_key_hash(const struct qf_key *key)
{
    return qf_hash128(key, sizeof *key);
}
