/* SPDX-License-Identifier: Apache-2.0 */
/* A shard whose records are all in a store that keeps files, and an engine over it. */
#ifndef QF_TESTS_UNIT_TEST_ENGINE_SEALED_RIG_H
#define QF_TESTS_UNIT_TEST_ENGINE_SEALED_RIG_H

#include "test_engine_fixture.h"

#include "engine/chunk.h"
#include "engine/seal.h"
#include "test_file_store.h"

struct rig {
    struct fx fx;
    qf_backend *backend;
    struct file_store store;
    char *files; /* directory */
    unsigned char *want;
    _Atomic int released; /* of files that rig_open opened */
    unsigned opened;
};

static inline void count_released(void *owner)
{
    atomic_fetch_add(&((struct rig *)owner)->released, 1);
}

static inline void engine_begin(struct rig *r, bool sealing)
{
    struct qf_engine_options options = {.backend = r->backend,
                                        .store = &r->store.base,
                                        .thread_count = 3};
    assert_int_equal(qf_engine_new(&options, &r->fx.engine), 0);
    qf_engine_set_sealing(r->fx.engine, sealing);
    r->opened = 0;
    r->released = 0;
}

static inline qf_shard_file *rig_open(struct rig *r)
{
    qf_shard_file *file;
    struct qf_hash128 id =
        qf_source_id(qf_srcfile_ident(r->fx.src), r->fx.shard->header_hash);
    assert_int_equal(qf_shard_file_open(r->fx.engine, r->fx.layout,
                                        &(struct qf_shard_source){r->fx.src, id}, 1, 0,
                                        count_released, r, &file),
                     0);
    r->opened++;
    return file;
}

/* Waits until nothing works for any file, so that whatever was to be sealed is. */
static inline void settle(struct rig *r)
{
    while (atomic_load(&r->released) != (int)r->opened)
        usleep(1000);
}

static inline void engine_end(struct rig *r)
{
    settle(r);
    qf_engine_free(r->fx.engine);
}

static inline void check_all(struct rig *r, qf_shard_file *file, size_t step)
{
    unsigned char *all = NULL;
    r->fx.file = file;
    assert_int_equal(fx_try_all(&r->fx, step, &all), 0);
    if (r->want != NULL)
        assert_memory_equal(all, r->want, r->fx.layout->file_size);
    free(all);
}

/* Opens, reads all, closes. */
static inline void visit(struct rig *r)
{
    qf_shard_file *file = rig_open(r);
    check_all(r, file, 1u << 20);
    qf_shard_file_close(file);
}

/* The records are in the store, and an engine that has read nothing is up. */
static inline void rig_begin(struct rig *r, const char *view)
{
    memset(r, 0, sizeof *r);
    fx_begin(&r->fx, fx_all, FX_ALL_COUNT, view);
    assert_true(r->fx.layout->file_size > QF_SEALED_SIZE_MIN);
    r->backend = fx_backend(NULL);
    r->files = tmpdir_make();
    file_store_init(&r->store, fx_store_mem(64u << 20), r->files);
    assert_int_equal(qf_srcfile_open(r->fx.root, SOURCE_NAME, &r->fx.src, NULL), 0);
    engine_begin(r, false);
    qf_shard_file *file = rig_open(r);
    r->fx.file = file;
    assert_int_equal(fx_try_all(&r->fx, 1u << 20, &r->want), 0);
    fx_expect(&r->fx, r->want);
    qf_shard_file_close(file);
    engine_end(r);
    engine_begin(r, true);
}

static inline void rig_end(struct rig *r)
{
    engine_end(r);
    qf_store_close(&r->store.base);
    qf_srcfile_close(r->fx.src);
    qf_backend_close(r->backend);
    free(r->want);
    tmpdir_remove(r->files);
    fx_end(&r->fx);
}

static inline void check_file_of(struct rig *r, qf_shard_file *file)
{
    size_t size = (size_t)r->fx.layout->file_size;
    unsigned char *bytes = malloc(size + 1);
    assert_non_null(bytes);
    int fd = qf_shard_file_sealed_fd(file);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, bytes, size + 1, 0), size);
    assert_memory_equal(bytes, r->want, size);
    free(bytes);
}

#endif
