/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for records of a backend that wants it pinned: what is pinned is unpinned
 * while it is still there, records do not overlap, nothing is kept that is not used,
 * and where there is no such memory everything works as before. The sources are
 * compiled here again, with a system that can be told to have no more memory. */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "test_engine_fixture.h"

static bool no_calloc;
static bool no_realloc;
static bool no_mmap;

static void *test_heap_calloc(size_t count, size_t size)
{
    return no_calloc ? NULL : calloc(count, size);
}

static void *test_heap_realloc(void *old, size_t size)
{
    return no_realloc ? NULL : realloc(old, size);
}

static void *test_heap_mmap(void *at, size_t size, int prot, int flags, int fd,
                            off_t off)
{
    return no_mmap ? MAP_FAILED : mmap(at, size, prot, flags, fd, off);
}

#define calloc  test_heap_calloc
#define realloc test_heap_realloc
#define mmap    test_heap_mmap
#include "engine/memory.c"
#include "engine/slabs.c"
#undef calloc
#undef realloc
#undef mmap

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

/* ---- a backend that keeps book of what it was told ---- */

#define PINS_MAX 256

struct pin {
    char *data;
    size_t size;
    bool refused;
};

struct pinner {
    qf_backend base;
    qf_backend *cpu; /* encodes; NULL: does not */
    pthread_mutex_t lock;
    struct pin pins[PINS_MAX];
    size_t count;
    size_t pinned; /* bytes now */
    size_t peak;   /* bytes */
    size_t pin_calls;
    size_t refuse_each; /* 0: none */
    unsigned together;  /* so many threads are to be in fake_pin at a time */
    pthread_cond_t all_there;
    size_t inside; /* records that lay in pinned memory */
    size_t outside;
};

static struct pinner *pinner_of(qf_backend *backend)
{
    return (struct pinner *)(void *)backend;
}

static void fake_pin(qf_backend *backend, void *data, size_t size)
{
    struct pinner *p = pinner_of(backend);
    pthread_mutex_lock(&p->lock);
    assert_true(p->count < PINS_MAX);
    p->pin_calls++;
    bool refused = p->refuse_each != 0 && p->pin_calls % p->refuse_each == 0;
    p->pins[p->count++] = (struct pin){data, size, refused};
    p->pinned += size;
    if (p->pinned > p->peak)
        p->peak = p->pinned;
    if (p->together > 0 && --p->together == 0)
        pthread_cond_broadcast(&p->all_there);
    while (p->together > 0)
        pthread_cond_wait(&p->all_there, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void fake_unpin(qf_backend *backend, void *data)
{
    struct pinner *p = pinner_of(backend);
    bool found = false;
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < p->count && !found; i++) {
        if (p->pins[i].data != (char *)data)
            continue;
        found = true;
        p->pinned -= p->pins[i].size;
        /* still there */
        p->pins[i].data[0] = 1;
        p->pins[i].data[p->pins[i].size - 1] = 1;
        p->pins[i] = p->pins[--p->count];
    }
    pthread_mutex_unlock(&p->lock);
    assert_true(found);
}

static bool is_pinned(struct pinner *p, const void *data, size_t size)
{
    bool found = false;
    const char *at = data;
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < p->count; i++)
        found |= !p->pins[i].refused && at >= p->pins[i].data &&
                 at + size <= p->pins[i].data + p->pins[i].size;
    pthread_mutex_unlock(&p->lock);
    return found;
}

static void fake_encode(qf_backend *backend, struct qf_job *jobs, size_t count)
{
    struct pinner *p = pinner_of(backend);
    for (size_t i = 0; i < count; i++) {
        size_t size = qf_plan_chunk_size(jobs[i].plan, jobs[i].chunk);
        bool inside = is_pinned(p, jobs[i].record, size);
        pthread_mutex_lock(&p->lock);
        p->inside += inside;
        p->outside += !inside;
        pthread_mutex_unlock(&p->lock);
    }
    qf_backend_encode(p->cpu, jobs, count);
}

static const struct qf_backend_ops fake_ops = {.name = "fake",
                                               .encode = fake_encode,
                                               .batch = 8,
                                               .pin = fake_pin,
                                               .unpin = fake_unpin};

static struct pinner *new_pinner(size_t refuse_each)
{
    struct pinner *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->base.ops = &fake_ops;
    p->refuse_each = refuse_each;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->all_there, NULL);
    return p;
}

static void free_pinner(struct pinner *p)
{
    assert_int_equal(p->count, 0);
    assert_int_equal(p->pinned, 0);
    pthread_cond_destroy(&p->all_there);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* ---- tests ---- */

static void test_records_lie_in_slabs(void **state)
{
    (void)state;
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    qf_memory_init(&memory, 64 * MIB, &p->base);
    const size_t sizes[] = {0,       1,       16 * KIB, 16 * KIB + 1,       600000,
                            1049600, 3 * MIB, 4 * MIB,  QF_SLAB_RECORD_SIZE};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    char *data[COUNT];
    uint64_t used = 0;
    for (size_t i = 0; i < COUNT; i++) {
        data[i] = qf_memory_get_record(&memory, sizes[i]);
        assert_non_null(data[i]);
        assert_int_equal((uintptr_t)data[i] % 64, 0);
        assert_true(is_pinned(p, data[i], sizes[i]));
        memset(data[i], (int)(i + 1), sizes[i]);
        used += qf_memory_cost(sizes[i]);
        assert_int_equal(memory.used, used);
    }
    for (size_t i = 0; i < COUNT; i++)
        for (size_t k = 0; k < sizes[i]; k += 4095)
            assert_int_equal(data[i][k], i + 1);
    /* buffers are not records, and what is larger than a slab takes is not in one */
    void *buffer = qf_memory_get(&memory, MIB);
    void *large = qf_memory_get_record(&memory, QF_SLAB_RECORD_SIZE + 1);
    assert_false(is_pinned(p, buffer, 1));
    assert_false(is_pinned(p, large, 1));
    qf_memory_put(&memory, buffer, MIB);
    qf_memory_put(&memory, large, QF_SLAB_RECORD_SIZE + 1);
    for (size_t i = 0; i < COUNT; i++)
        qf_memory_put(&memory, data[i], sizes[i]);
    assert_int_equal(memory.used, 0);
    qf_memory_fini(&memory);
    free_pinner(p);
}

/* Slabs are bounded; past that records come from the system. Unused slabs go. */
static void test_bounds(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    void *data[COUNT];
    qf_memory_init(&memory, 100 * MIB, &p->base);
    size_t inside = 0;
    for (size_t i = 0; i < COUNT; i++) {
        data[i] = qf_memory_get_record(&memory, MIB);
        assert_non_null(data[i]);
        memset(data[i], 1, MIB);
        inside += is_pinned(p, data[i], MIB);
    }
    assert_int_equal(inside, 96);
    assert_int_equal(p->peak, 96 * MIB);
    assert_int_equal(memory.used, COUNT * MIB);
    for (size_t i = 0; i < COUNT; i += 2)
        qf_memory_put(&memory, data[i], MIB);
    assert_int_equal(p->pinned, 96 * MIB); /* every slab has a record in it */
    void *again = qf_memory_get_record(&memory, MIB);
    assert_true(is_pinned(p, again, MIB));
    assert_int_equal(p->pin_calls, 6);
    qf_memory_put(&memory, again, MIB);
    for (size_t i = 1; i < COUNT; i += 2)
        qf_memory_put(&memory, data[i], MIB);
    assert_int_equal(p->pinned, QF_SLABS_EMPTY_MAX * QF_SLAB_SIZE);
    assert_int_equal(memory.used, 0);
    /* what was given back can be had again */
    for (size_t i = 0; i < 90; i++)
        assert_true(is_pinned(p, data[i] = qf_memory_get_record(&memory, MIB), MIB));
    for (size_t i = 0; i < 90; i++)
        qf_memory_put(&memory, data[i], MIB);
    qf_memory_fini(&memory);
    free_pinner(p);
}

static void test_small_limit(void **state)
{
    (void)state;
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    qf_memory_init(&memory, QF_SLAB_SIZE - 1, &p->base);
    void *data = qf_memory_get_record(&memory, MIB);
    assert_non_null(data);
    assert_int_equal(p->pin_calls, 0);
    qf_memory_put(&memory, data, MIB);
    qf_memory_fini(&memory);
    free_pinner(p);
}

/* Holes are filled again, with runs that are long enough. */
static void test_holes(void **state)
{
    (void)state;
    enum { COUNT = 16 };
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    char *data[COUNT];
    qf_memory_init(&memory, 64 * MIB, &p->base);
    for (size_t i = 0; i < COUNT; i++)
        data[i] = qf_memory_get_record(&memory, MIB);
    qf_memory_put(&memory, data[3], MIB);
    qf_memory_put(&memory, data[7], MIB);
    qf_memory_put(&memory, data[8], MIB);
    char *two = qf_memory_get_record(&memory, 2 * MIB);
    assert_ptr_equal(two, data[7]);
    char *one = qf_memory_get_record(&memory, MIB);
    assert_ptr_equal(one, data[3]);
    assert_int_equal(p->pin_calls, 1);
    char *other = qf_memory_get_record(&memory, 16 * KIB);
    assert_int_equal(p->pin_calls, 2);
    data[3] = one;
    qf_memory_put(&memory, other, 16 * KIB);
    qf_memory_put(&memory, two, 2 * MIB);
    for (size_t i = 0; i < COUNT; i++)
        if (i != 7 && i != 8)
            qf_memory_put(&memory, data[i], MIB);
    qf_memory_fini(&memory);
    free_pinner(p);
}

/* Without pinned memory everything works as it does without slabs. */
static void test_no_memory(void **state)
{
    (void)state;
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    bool *const switches[] = {&no_calloc, &no_realloc, &no_mmap};
    for (size_t i = 0; i < 3; i++) {
        qf_memory_init(&memory, 64 * MIB, &p->base);
        *switches[i] = true;
        char *data = qf_memory_get_record(&memory, MIB);
        *switches[i] = false;
        assert_non_null(data);
        assert_false(is_pinned(p, data, 1));
        assert_int_equal(p->pinned, 0);
        assert_int_equal(memory.used, MIB);
        /* and when there is some again, it is used */
        char *pinned = qf_memory_get_record(&memory, MIB);
        assert_true(is_pinned(p, pinned, MIB));
        qf_memory_put(&memory, data, MIB);
        qf_memory_put(&memory, pinned, MIB);
        assert_int_equal(memory.used, 0);
        qf_memory_fini(&memory);
    }
    free_pinner(p);
}

struct worker {
    struct qf_memory *memory;
    unsigned char mark;
};

static void *get_and_put(void *arg)
{
    struct worker *w = arg;
    enum { HELD = 12 };
    unsigned char *data[HELD] = {NULL};
    size_t sizes[HELD] = {0};
    for (size_t i = 0; i < 3000; i++) {
        size_t k = i % HELD;
        if (data[k] != NULL &&
            (data[k][0] != w->mark || data[k][sizes[k] - 1] != w->mark))
            return arg;
        qf_memory_put(w->memory, data[k], sizes[k]);
        sizes[k] = 1 + i * 7919 % (1100 * KIB);
        data[k] = qf_memory_get_record(w->memory, sizes[k]);
        if (data[k] == NULL)
            return arg;
        data[k][0] = data[k][sizes[k] - 1] = w->mark;
    }
    for (size_t k = 0; k < HELD; k++)
        qf_memory_put(w->memory, data[k], sizes[k]);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct pinner *p = new_pinner(3);
    struct qf_memory memory;
    struct worker workers[4];
    pthread_t threads[4];
    qf_memory_init(&memory, 48 * MIB, &p->base); /* too little for all */
    for (size_t i = 0; i < 4; i++) {
        workers[i] = (struct worker){&memory, (unsigned char)(i + 1)};
        assert_int_equal(pthread_create(&threads[i], NULL, get_and_put, &workers[i]),
                         0);
    }
    for (size_t i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_true(p->peak <= 48 * MIB);
    assert_true(p->pinned <= QF_SLABS_EMPTY_MAX * QF_SLAB_SIZE);
    assert_int_equal(memory.used, 0);
    qf_memory_fini(&memory);
    free_pinner(p);
}

static void *get_one(void *arg)
{
    return qf_memory_get_record(arg, MIB);
}

/* Threads that find no slab map one each, and then all records lie in the first. The
 * empty ones go, and not the one that is in use. */
static void test_mapped_together(void **state)
{
    (void)state;
    enum { TOGETHER = 6 };
    struct pinner *p = new_pinner(0);
    struct qf_memory memory;
    pthread_t threads[TOGETHER];
    void *records[TOGETHER];
    qf_memory_init(&memory, 512 * MIB, &p->base);
    p->together = TOGETHER;
    for (size_t i = 0; i < TOGETHER; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, get_one, &memory), 0);
    for (size_t i = 0; i < TOGETHER; i++) {
        pthread_join(threads[i], &records[i]);
        assert_true(is_pinned(p, records[i], MIB));
        memset(records[i], (int)i, MIB);
    }
    assert_int_equal(p->pinned, TOGETHER * QF_SLAB_SIZE);
    for (size_t i = 0; i < TOGETHER; i++) {
        for (size_t k = i; k < TOGETHER; k++)
            assert_int_equal(*(char *)records[k], k);
        qf_memory_put(&memory, records[i], MIB);
    }
    assert_int_equal(p->pinned, QF_SLABS_EMPTY_MAX * QF_SLAB_SIZE);
    qf_memory_fini(&memory);
    free_pinner(p);
}

/* The engine asks for its records there, and the bytes are the same, also with slabs
 * that could not be pinned. */
static void test_engine(void **state)
{
    (void)state;
    struct fx fx;
    qf_backend *cpu = fx_backend(NULL);
    for (size_t refuse = 0; refuse < 2; refuse++) {
        fx_begin(&fx, fx_all, FX_ALL_COUNT, "nf4");
        qf_store *store = fx_store_mem(0);
        fx_open(&fx, cpu, store, 0);
        unsigned char *want = fx_read_all(&fx, MIB);
        fx_close(&fx);
        struct pinner *p = new_pinner(refuse);
        p->cpu = cpu;
        fx_open(&fx, &p->base, store, 0);
        unsigned char *got = fx_read_all(&fx, MIB);
        assert_memory_equal(got, want, fx.layout->file_size);
        fx_close(&fx);
        assert_true(p->pin_calls > 0);
        assert_int_equal(refuse == 0 ? p->outside : p->inside, 0);
        assert_true(p->inside + p->outside > 0);
        free_pinner(p);
        free(want);
        free(got);
        qf_store_close(store);
        fx_end(&fx);
    }
    qf_backend_close(cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_lie_in_slabs),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_small_limit),
        cmocka_unit_test(test_holes),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_mapped_together),
        cmocka_unit_test(test_engine),
    };
    return cmocka_run_group_tests_name("engine_slabs", tests, NULL, NULL);
}
