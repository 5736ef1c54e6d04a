/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian loads and stores at any alignment, and checked size arithmetic. */
#ifndef QF_BASE_BYTES_H
#define QF_BASE_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "quantfs stores and computes little-endian; this machine is not"
#endif

static inline uint64_t qf_load_u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t qf_load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void qf_store_u64(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void qf_store_u32(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}

/* *out = a * b (a + b); false when it does not fit. */
static inline bool qf_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool qf_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline uint64_t qf_div_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

#endif
