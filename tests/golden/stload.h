/* SPDX-License-Identifier: Apache-2.0 */
/* A safetensors file in memory, for the tests of this folder. */
#ifndef QF_TESTS_GOLDEN_STLOAD_H
#define QF_TESTS_GOLDEN_STLOAD_H

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "ckpt/shard.h"

struct stload {
    char *file;
    struct qf_shard *shard;
};

static inline struct stload stload_open(const char *path)
{
    struct stload s;
    struct qf_err err;
    FILE *f = fopen(path, "rb");
    assert(f != NULL);
    assert(fseek(f, 0, SEEK_END) == 0);
    long size = ftell(f);
    assert(size > 8);
    rewind(f);
    s.file = malloc((size_t)size);
    assert(s.file != NULL && fread(s.file, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    int rc = qf_shard_parse(s.file, 8 + (size_t)qf_load_u64(s.file), (uint64_t)size,
                            &s.shard, &err);
    if (rc != 0)
        fprintf(stderr, "%s: %s\n", path, err.text);
    assert(rc == 0);
    return s;
}

static inline void stload_close(struct stload *s)
{
    qf_shard_free(s->shard);
    free(s->file);
}

/* The tensor PREFIX.SUFFIX: its bytes, copied to aligned memory (owned; free), or NULL
 * when there is none. */
static inline void *stload_get(const struct stload *s, const char *prefix,
                               const char *suffix, size_t *size)
{
    char name[192];
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    const struct qf_tensor *t = qf_shard_find(s->shard, name);
    if (t == NULL)
        return NULL;
    char *copy = malloc((size_t)t->size + 1);
    assert(copy != NULL);
    memcpy(copy, s->file + t->off, (size_t)t->size);
    *size = (size_t)t->size;
    return copy;
}

#endif
