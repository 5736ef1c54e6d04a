/* SPDX-License-Identifier: Apache-2.0 */
/* Which table: asks the processor by CPUID and, because a kernel that does not save the
 * wide registers would corrupt them, the operating system by XGETBV. By hand, since the
 * compilers' __builtin_cpu_supports know different names. */
#include "quant/kernels.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "quant/gguf_impl.h"
#include "quant/kernels_impl.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static struct qf_kernels tables[QF_ISA_COUNT];
static enum qf_isa best;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const char *const isa_names[QF_ISA_COUNT] = {
    [QF_ISA_SCALAR] = "scalar",
    [QF_ISA_AVX2] = "avx2",
    [QF_ISA_AVX512] = "avx512",
};

#if defined(__x86_64__)
static uint64_t saved_registers(void)
{
    uint32_t low;
    uint32_t high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static enum qf_isa detect(void)
{
    const uint32_t leaf1 = UINT32_C(1) << 27 | UINT32_C(1) << 28 | /* OSXSAVE, AVX */
                           UINT32_C(1) << 12 | UINT32_C(1) << 29;  /* FMA, F16C */
    const uint32_t avx2 = UINT32_C(1) << 5;
    const uint32_t avx512 = UINT32_C(1) << 16 | UINT32_C(1) << 17 | /* F, DQ */
                            UINT32_C(1) << 30 | UINT32_C(1) << 31;  /* BW, VL */
    const uint64_t ymm = 0x06;
    const uint64_t zmm = 0xe6;
    uint32_t a;
    uint32_t b;
    uint32_t c;
    uint32_t d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & leaf1) != leaf1)
        return QF_ISA_SCALAR;
    uint64_t saved = saved_registers();
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (b & avx2) == 0 ||
        (saved & ymm) != ymm)
        return QF_ISA_SCALAR;
    if ((b & avx512) != avx512 || (saved & zmm) != zmm)
        return QF_ISA_AVX2;
    return QF_ISA_AVX512;
}
#else
static enum qf_isa detect(void)
{
    return QF_ISA_SCALAR;
}
#endif

static void init(void)
{
    best = detect();
    for (int i = 0; i < QF_ISA_COUNT; i++) {
        tables[i] = qf_kernels_scalar;
        qf_gguf_init_scalar(&tables[i]);
        tables[i].name = isa_names[i];
        memcpy(tables[i].group_absmax, qf_group_absmax_scalar,
               sizeof qf_group_absmax_scalar);
        memcpy(tables[i].scaled, qf_scaled_scalar, sizeof qf_scaled_scalar);
    }
#if defined(__x86_64__)
    if (best >= QF_ISA_AVX2)
        qf_nested_lut_init();
    for (int i = QF_ISA_AVX2; i <= (int)best; i++) {
        qf_kernels_init_avx2(&tables[i]);
        qf_kernels_init_avx2_nested(&tables[i]);
        qf_kernels_init_avx2_dequant(&tables[i]);
        qf_gguf_init_avx2(&tables[i]);
    }
    if (best >= QF_ISA_AVX512) {
        qf_kernels_init_avx512(&tables[QF_ISA_AVX512]);
        qf_kernels_init_avx512_dequant(&tables[QF_ISA_AVX512]);
        qf_gguf_init_avx512(&tables[QF_ISA_AVX512]);
    }
#endif
}

const char *qf_isa_name(enum qf_isa isa)
{
    assert(isa < QF_ISA_COUNT);
    return isa_names[isa];
}

enum qf_isa qf_isa_detect(void)
{
    pthread_once(&once, init);
    return best;
}

const struct qf_kernels *qf_kernels_for(enum qf_isa isa)
{
    enum qf_isa limit = qf_isa_detect();
    assert(isa <= limit);
    return &tables[isa];
}

const struct qf_kernels *qf_kernels_best(void)
{
    enum qf_isa isa = qf_isa_detect();
    const char *mask = getenv("QUANTFS_ISA");
    for (int i = 0; mask != NULL && i < (int)isa; i++)
        if (strcmp(mask, isa_names[i]) == 0)
            isa = (enum qf_isa)i;
    return qf_kernels_for(isa);
}
