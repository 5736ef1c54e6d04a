/* SPDX-License-Identifier: Apache-2.0 */
/* The device against the scalar kernels, whole records through the backends: every
 * class of number, every source type and model type, all block sizes, every tail
 * length, ties at every threshold, every 16-bit value, the golden file's sources; from
 * memory and from files at odd offsets.
 *
 *   cuda_check [--quick | --big] [GOLDEN]
 *
 * --quick: a sample, for slow devices. --big: also 1 GiB of numbers for each codec and
 * source type (against the best kernels of this processor, by many threads). The same
 * program is built with a simulated device. Exit 77: no device here. */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "compare.h"
#include "cuda/cuda_backend.h"
#include "golden/stload.h"
#include "quant/half.h"
#include "quant/tables.h"

static qf_backend *cuda;
static qf_backend *scalar;
static bool quick;
static uint64_t compared;

static struct qf_codec_spec spec_of(enum qf_codec codec, enum qf_dtype dtype,
                                    uint32_t blocksize)
{
    struct qf_codec_spec spec = qf_codec_default(codec, dtype);
    spec.blocksize = blocksize;
    return spec;
}

static void check(const struct weight *w, enum qf_codec codec, enum qf_dtype dtype,
                  uint32_t blocksize)
{
    struct qf_codec_spec spec = spec_of(codec, dtype, blocksize);
    compared += compare(cuda, scalar, &spec, w, 32);
}

/* Scaled codecs are the fallback's. */
static bool is_of_device(int codec)
{
    return qf_codec_info((enum qf_codec)codec)->scaled == QF_SCALED_NONE;
}

static void check_all(const struct weight *w, enum qf_dtype dtype)
{
    for (int codec = 0; codec < QF_CODEC_COUNT; codec++)
        if (is_of_device(codec))
            check(w, (enum qf_codec)codec, dtype, 64);
}

static void done(const char *what)
{
    printf("%s: %llu bytes the same so far\n", what, (unsigned long long)compared);
    fflush(stdout);
}

static void check_classes(void)
{
    enum { N = 200 * 1000 };
    static unsigned char data[4 * N];
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        for (int class = 0; class < NUMBER_CLASS_COUNT; class ++) {
            numbers_fill(data, (enum qf_dtype)d, N, (enum number_class) class,
                         (uint64_t)(d * 100 + class));
            for (int to = 0; to < QF_FLOAT_COUNT; to++) {
                struct weight w = weight_of(data, (enum qf_dtype)d, 200, 1000);
                for (uint32_t b = 64; b <= 4096; b *= quick ? 8 : 2) {
                    check(&w, QF_CODEC_NF4, (enum qf_dtype)to, b);
                    check(&w, QF_CODEC_FP4, (enum qf_dtype)to, b);
                }
                check(&w, QF_CODEC_DQ, (enum qf_dtype)to, 64);
                check(&w, QF_CODEC_INT8, (enum qf_dtype)to, 64);
            }
        }
    }
    done("classes");
}

/* Every length of the last block, octet and byte. */
static void check_tails(void)
{
    enum { N = 12000 };
    static unsigned char data[4 * N];
    static const uint32_t blocksizes[] = {64, 256, 512, 4096};
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        numbers_fill(data, (enum qf_dtype)d, N, HEAVY, (uint64_t)d);
        for (size_t b = 0; b < 4; b++) {
            uint64_t step = quick ? 97 : blocksizes[b] <= 256 ? 1 : 37;
            uint64_t most = 2 * blocksizes[b] + 300;
            for (uint64_t n = 1; n <= most; n += step) {
                struct weight w = weight_of(data, (enum qf_dtype)d, 1, n);
                check(&w, QF_CODEC_NF4, (enum qf_dtype)d, blocksizes[b]);
                check(&w, QF_CODEC_FP4, (enum qf_dtype)d, blocksizes[b]);
            }
        }
    }
    done("tails");
}

/* Rows of every shape that the kernel tells apart: odd, short, one warp, one block with
 * everything in registers, and longer than that. */
static void check_rows(void)
{
    enum { N = 3000 * 1000 };
    static const uint64_t cols[] = {1,    2,    3,    7,    8,     9,     16,    31,
                                    64,   100,  127,  1000, 1024,  1025,  1032,  4096,
                                    5120, 8191, 8200, 9001, 14336, 32768, 32776, 70001};
    static unsigned char data[4 * N];
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        numbers_fill(data, (enum qf_dtype)d, N, NORMAL, (uint64_t)d + 7);
        for (size_t i = 0; i < sizeof cols / sizeof *cols; i++) {
            uint64_t rows = cols[i] < 64 ? 1000 : N / cols[i] < 300 ? N / cols[i] : 300;
            if (quick && rows > 20)
                rows = 20;
            struct weight w = weight_of(data, (enum qf_dtype)d, rows, cols[i]);
            for (int to = 0; to < QF_FLOAT_COUNT; to++)
                check(&w, QF_CODEC_INT8, (enum qf_dtype)to, 64);
        }
    }
    done("rows");
}

static void check_ties(void)
{
    enum { ROUNDS = 200, ELEMS = 64 * 20 };
    static uint32_t src[ROUNDS * ELEMS];
    uint64_t state = 12345;
    size_t n = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t mixed = (uint32_t)((state = state * 6364136223846793005u + 1) >> 33);
        uint32_t absmax = round == 0   ? 0x3f800000u
                          : round < 30 ? round << 23 | (mixed & 0x7fffffu)
                                       : (mixed & 0x3fffffffu) + 0x20000000u;
        float rcp = 1.0f / qf_f32_of_bits(absmax);
        for (int t = 0; t < 22; t++) {
            float y = qf_f32_of_bits(t < 15 ? qf_nf4_thresholds[t]
                                            : qf_fp4_thresholds[t - 15]);
            for (uint32_t k = 0; k < 14; k++) {
                if (n % 64 == 0)
                    src[n++] = absmax;
                src[n++] = (qf_f32_bits(y / rcp) + k / 2 - 3) ^ k % 2 << 31;
            }
        }
        for (; n % ELEMS != 0; n++)
            src[n] = n % 64 == 0 ? absmax : n % 2 << 31 | (n % 4 != 0);
    }
    struct weight w = weight_of(src, QF_F32, ROUNDS, ELEMS);
    check(&w, QF_CODEC_NF4, QF_F32, 64);
    check(&w, QF_CODEC_FP4, QF_F32, 64);
    check(&w, QF_CODEC_INT8, QF_F32, 64);
    done("ties");
}

/* Values of a 16-bit type under absmaxima of that type: all values near the absmax. */
static void check_every16(enum qf_dtype dtype)
{
    enum { ROW = 64 * 160 };
    uint32_t inf = dtype == QF_BF16 ? 0x7f80 : 0x7c00;
    uint32_t step = quick ? 4001 : 61;
    uint64_t rows = inf / step + 1;
    uint16_t *src = calloc(rows * ROW, sizeof *src);
    assert(src != NULL);
    for (uint64_t row = 0; row < rows; row++) {
        uint32_t absmax = (uint32_t)(row * step);
        for (uint32_t i = 0; i < ROW; i++) {
            uint32_t down = i / 2 < absmax ? i / 2 : absmax;
            uint32_t u = i % 64 == 0 ? absmax : (absmax - down) | i % 2 << 15;
            src[row * ROW + i] = (uint16_t)u;
        }
    }
    struct weight w = weight_of(src, dtype, rows, ROW);
    check_all(&w, dtype);
    free(src);
    done(dtype == QF_BF16 ? "every bf16" : "every fp16");
}

/* All values, and binary32 at, below and above every rounding to 16 bits. */
static void check_casts(void)
{
    static uint32_t src[6 * 65536];
    static uint16_t half[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        half[i] = (uint16_t)i;
        for (uint32_t k = 0; k < 3; k++) {
            src[6 * i + k] = (i << 16) + 0x7fff + k;
            src[6 * i + 3 + k] = qf_f16_to_f32_bits((uint16_t)i) + 0xfff + k;
        }
    }
    for (int to = 0; to < QF_FLOAT_COUNT; to++) {
        struct weight w = weight_of(src, QF_F32, 6 * 1024, 64);
        check_all(&w, (enum qf_dtype)to);
        for (int d = QF_F16; d <= QF_BF16; d++) {
            w = weight_of(half, (enum qf_dtype)d, 1024, 64);
            check_all(&w, (enum qf_dtype)to);
        }
    }
    done("casts");
}

/* Several chunks, from a file at an offset that aligns nothing, over the end of a
 * window (32 MiB), the last chunk short; and transposed. */
static void check_files(void)
{
    enum { ROWS = 5000, COLS = 4104 };
    size_t n = (size_t)ROWS * COLS;
    char *data = malloc(4 * n);
    FILE *file = tmpfile();
    assert(data != NULL && file != NULL);
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        struct weight w = weight_of(data, (enum qf_dtype)d, ROWS, COLS);
        numbers_fill(data, w.dtype, n, NORMAL, (uint64_t)d + 99);
        w.fd = fileno(file);
        for (w.fd_off = 7; w.fd_off < 8; w.fd_off++) {
            assert(ftruncate(w.fd, 0) == 0);
            assert(pwrite(w.fd, data, w.size, (off_t)w.fd_off) == (ssize_t)w.size);
            check_all(&w, w.dtype);
            w.transposed = true;
            w.rows = 2000;
            w.size = (size_t)w.rows * COLS * qf_dtype_size(w.dtype);
            check(&w, QF_CODEC_NF4, w.dtype, 64);
        }
    }
    fclose(file);
    free(data);
    done("files");
}

static void check_golden(const char *path)
{
    static const char *const names[] = {"blocks", "heavy",    "normal",
                                        "odd",    "odd_even", "ties",
                                        "tiny",   "uniform",  "zeros"};
    struct stload golden = stload_open(path);
    size_t count = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int d = 0; d < QF_FLOAT_COUNT; d++) {
            char name[64];
            snprintf(name, sizeof name, "%s.%s", names[i],
                     qf_dtype_name((enum qf_dtype)d));
            size_t size;
            void *data = stload_get(&golden, name, "src", &size);
            if (data == NULL)
                continue;
            strcat(name, ".src");
            const struct qf_tensor *t = qf_shard_find(golden.shard, name);
            struct weight w =
                weight_of(data, (enum qf_dtype)d, t->shape[0], t->shape[1]);
            check_all(&w, w.dtype);
            free(data);
            count++;
        }
    }
    assert(count >= 20);
    stload_close(&golden);
    done("golden");
}

/* ---- a lot, by many threads ---- */

struct big {
    qf_backend *best;
    struct qf_plan plan;
    struct weight w;
    pthread_mutex_t lock;
    uint64_t next; /* chunk */
    bool fill;
};

static void *big_thread(void *arg)
{
    struct big *big = arg;
    size_t width = qf_dtype_size(big->w.dtype);
    for (;;) {
        pthread_mutex_lock(&big->lock);
        uint64_t first = big->next;
        big->next += 32;
        pthread_mutex_unlock(&big->lock);
        if (first >= big->plan.chunk_count)
            return NULL;
        uint64_t end =
            first + 32 < big->plan.chunk_count ? first + 32 : big->plan.chunk_count;
        for (uint64_t c = first; c < end && big->fill; c++) {
            uint64_t at, n;
            qf_plan_chunk_elems(&big->plan, c, &at, &n);
            numbers_fill((char *)(uintptr_t)big->w.data + at * width, big->w.dtype,
                         (size_t)n,
                         c % 8 == 0   ? BITS
                         : c % 8 == 1 ? HEAVY
                                      : NORMAL,
                         c);
        }
        if (!big->fill)
            compare_chunks(cuda, big->best, &big->plan, &big->w, first, end, 32);
    }
}

static void big_run(struct big *big, bool fill)
{
    pthread_t threads[64];
    unsigned count = qf_cpu_count() < 64 ? qf_cpu_count() : 64;
    big->fill = fill;
    big->next = 0;
    for (unsigned i = 0; i < count; i++)
        assert(pthread_create(&threads[i], NULL, big_thread, big) == 0);
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void check_big(void)
{
    enum { COLS = 8192 };
    size_t size = (size_t)1 << 30;
    struct big big = {.lock = PTHREAD_MUTEX_INITIALIZER};
    void *data = malloc(size);
    assert(data != NULL && qf_cpu_backend_open(NULL, &big.best, NULL) == 0);
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        size_t width = qf_dtype_size((enum qf_dtype)d);
        big.w = weight_of(data, (enum qf_dtype)d, size / width / COLS, COLS);
        uint64_t shape[2] = {big.w.rows, COLS};
        for (int codec = 0; codec < QF_CODEC_COUNT; codec++) {
            if (!is_of_device(codec))
                continue;
            struct qf_codec_spec spec = spec_of((enum qf_codec)codec, big.w.dtype, 64);
            assert(qf_codec_plan(&spec, big.w.dtype, shape, false, &big.plan, NULL) ==
                   0);
            if (codec == 0)
                big_run(&big, true);
            big_run(&big, false);
            printf("%s %s: 0 differences over 1 GiB\n",
                   qf_codec_name((enum qf_codec)codec),
                   qf_dtype_name((enum qf_dtype)d));
            fflush(stdout);
        }
    }
    qf_backend_close(big.best);
    free(data);
}

int main(int argc, char **argv)
{
    bool big = false;
    const char *golden = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0)
            quick = true;
        else if (strcmp(argv[i], "--big") == 0)
            big = true;
        else
            golden = argv[i];
    }
    struct qf_err err = {""};
    struct qf_cuda_options options = {0};
    assert(qf_cpu_backend_open("scalar", &scalar, NULL) == 0);
    int rc = qf_cuda_backend_open(&options, scalar, &cuda, &err);
    if (rc != 0) {
        printf("SKIP: %s\n", err.text);
        qf_backend_close(scalar);
        return rc == -ENODEV ? 77 : 1;
    }
    check_classes();
    check_tails();
    check_rows();
    check_ties();
    check_every16(QF_BF16);
    check_every16(QF_F16);
    check_casts();
    check_files();
    if (golden != NULL)
        check_golden(golden);
    struct qf_cuda_stats stats;
    qf_cuda_backend_stats(cuda, &stats);
    printf("device: %llu chunks, %llu by the fallback, %llu MB mapped, %llu MB read\n",
           (unsigned long long)stats.chunks, (unsigned long long)stats.chunks_fallback,
           (unsigned long long)stats.source_mapped / 1000000,
           (unsigned long long)stats.source_read / 1000000);
    /* Transposed weights only: else the comparison has compared nothing. */
    bool fault = getenv("QUANTFS_FAULT") != NULL; /* then the bytes alone count */
    bool ok = fault || (stats.failures == 0 && !stats.down &&
                        stats.chunks_fallback == 3 * 8 && stats.source_mapped != 0);
    if (big)
        check_big();
    qf_backend_close(cuda);
    qf_backend_close(scalar);
    printf("%s\n", ok ? "ok" : "FAIL: the device did not do all it should");
    return ok ? 0 : 1;
}
