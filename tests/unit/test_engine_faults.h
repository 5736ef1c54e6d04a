/* SPDX-License-Identifier: Apache-2.0 */
/* A backend and a store that go wrong when they are told to. */
#ifndef QF_TESTS_UNIT_TEST_ENGINE_FAULTS_H
#define QF_TESTS_UNIT_TEST_ENGINE_FAULTS_H

#include "test_engine_fixture.h"

#include <pthread.h>

struct fault_backend {
    qf_backend base;
    struct qf_backend_ops ops;
    qf_backend *real;
    _Atomic int calls;
    _Atomic int fail_from; /* calls from this number on (from 1) fail; 0: none */
    _Atomic int fail_count;
    int rc;
    void (*before)(void *arg); /* in the call `hook_call`, before and after encoding */
    void (*after)(void *arg);
    int hook_call;
    void *arg;
    unsigned delay_us;
};

static inline void fault_encode(qf_backend *backend, struct qf_job *jobs, size_t count)
{
    struct fault_backend *b = (struct fault_backend *)backend;
    int call = atomic_fetch_add(&b->calls, 1) + 1;
    int from = atomic_load(&b->fail_from);
    if (b->delay_us != 0)
        usleep(b->delay_us);
    if (b->before != NULL && call == b->hook_call)
        b->before(b->arg);
    if (from != 0 && call >= from && call < from + atomic_load(&b->fail_count)) {
        for (size_t i = 0; i < count; i++)
            jobs[i].rc = b->rc;
        return;
    }
    qf_backend_encode(b->real, jobs, count);
    if (b->after != NULL && call == b->hook_call)
        b->after(b->arg);
}

static inline void fault_backend_init(struct fault_backend *b)
{
    *b = (struct fault_backend){.ops = {.name = "fault", .encode = fault_encode},
                                .real = fx_backend(NULL)};
    b->base.ops = &b->ops;
}

static inline void fault_backend_fini(struct fault_backend *b)
{
    qf_backend_close(b->real);
}

/* Some of the calls of one kind. */
struct fault_calls {
    _Atomic int calls;
    _Atomic int from; /* calls from this number on (from 1) go wrong; 0: none */
    _Atomic int count;
};

static inline bool fault_call(struct fault_calls *f)
{
    int call = atomic_fetch_add(&f->calls, 1) + 1;
    int from = atomic_load(&f->from);
    return from != 0 && call >= from && call - from < atomic_load(&f->count);
}

struct fault_store {
    qf_store base;
    qf_store *real;             /* owned */
    struct fault_calls missing; /* gets that find nothing */
    struct fault_calls cut;     /* finds that come back a byte short */
    struct fault_calls dropped; /* puts that are lost */
    int resize;                 /* added to the size of what is found */
    _Atomic size_t loses;       /* values of this size are never found */
    _Atomic int misses;         /* this many look-ups find nothing */
    _Atomic int puts;
    bool late; /* done is called by a thread of its own, some time later */
    pthread_t threads[64];
    int thread_count;
    pthread_mutex_t lock;
};

static inline bool fault_get(qf_store *store, struct qf_hash128 key,
                             struct qf_store_value *out)
{
    struct fault_store *s = (struct fault_store *)store;
    if (atomic_load(&s->misses) > 0 && atomic_fetch_sub(&s->misses, 1) > 0)
        return false;
    if (fault_call(&s->missing) || !qf_store_get(s->real, key, out))
        return false;
    if (fault_call(&s->cut))
        out->size--;
    if (out->size == atomic_load(&s->loses)) {
        qf_store_release(s->real, out);
        return false;
    }
    out->size = (size_t)((long)out->size + s->resize);
    return true;
}

static inline void fault_release(qf_store *store, struct qf_store_value *value)
{
    qf_store_release(((struct fault_store *)store)->real, value);
}

struct late_put {
    struct fault_store *store;
    struct qf_hash128 key;
    uint64_t origin;
    const void *data;
    size_t size;
    qf_store_done *done;
    void *arg;
};

static inline void *late_put_main(void *arg)
{
    struct late_put *put = arg;
    usleep(20000);
    qf_store_put(put->store->real, put->key, put->origin, put->data, put->size,
                 put->done, put->arg);
    free(put);
    return NULL;
}

static inline void fault_put(qf_store *store, struct qf_hash128 key, uint64_t origin,
                             const void *data, size_t size, qf_store_done *done,
                             void *arg)
{
    struct fault_store *s = (struct fault_store *)store;
    atomic_fetch_add(&s->puts, 1);
    if (fault_call(&s->dropped)) {
        done(arg, false);
        return;
    }
    struct late_put *put = s->late ? malloc(sizeof *put) : NULL;
    pthread_mutex_lock(&s->lock);
    if (put != NULL && s->thread_count < 64) {
        *put = (struct late_put){s, key, origin, data, size, done, arg};
        pthread_create(&s->threads[s->thread_count++], NULL, late_put_main, put);
        put = NULL;
        done = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    free(put);
    if (done != NULL)
        qf_store_put(s->real, key, origin, data, size, done, arg);
}

static inline void fault_flush(qf_store *store)
{
    struct fault_store *s = (struct fault_store *)store;
    for (int i = 0; i < s->thread_count; i++)
        pthread_join(s->threads[i], NULL);
    s->thread_count = 0;
    qf_store_flush(s->real);
}

static inline void fault_stats(qf_store *store, struct qf_store_stats *out)
{
    qf_store_stats(((struct fault_store *)store)->real, out);
}

static inline void fault_store_init(struct fault_store *s, qf_store *real)
{
    static const struct qf_store_ops ops = {.name = "fault",
                                            .get = fault_get,
                                            .release = fault_release,
                                            .put = fault_put,
                                            .flush = fault_flush,
                                            .stats = fault_stats};
    *s = (struct fault_store){.base.ops = &ops, .real = real};
    pthread_mutex_init(&s->lock, NULL);
}

static inline void fault_store_fini(struct fault_store *s)
{
    fault_flush(&s->base);
    qf_store_close(s->real);
    pthread_mutex_destroy(&s->lock);
}

#endif
