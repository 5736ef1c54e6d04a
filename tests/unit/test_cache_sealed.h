/* SPDX-License-Identifier: Apache-2.0 */
/* Flat files that a test can recompute from their number, and where they lie. */
#ifndef QF_TESTS_UNIT_TEST_CACHE_SEALED_H
#define QF_TESTS_UNIT_TEST_CACHE_SEALED_H

#include "test_cache_values.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

/* Keys of files are others than those of values. */
static inline struct qf_hash128 file_key(uint64_t number)
{
    return value_key(number + 1000000);
}

static inline void sealed_path(char *out, size_t size, const char *dir, uint64_t number,
                               const char *suffix)
{
    struct qf_hash128 key = file_key(number);
    int n = snprintf(out, size, "%s/sealed/%016llx%016llx%s", dir,
                     (unsigned long long)key.high, (unsigned long long)key.low, suffix);
    assert_true(n > 0 && (size_t)n < size);
}

static inline bool sealed_exists(const char *dir, uint64_t number, const char *suffix)
{
    char path[4096];
    sealed_path(path, sizeof path, dir, number, suffix);
    return access(path, F_OK) == 0;
}

/* What the cache takes on disk; *names: how many files there are in sealed/. */
static inline uint64_t disk_sum(const char *dir, unsigned *names)
{
    char path[4096];
    uint64_t sum = (uint64_t)file_size(dir, "data.mdb");
    path_in(path, sizeof path, dir, "sealed");
    DIR *list = opendir(path);
    assert_non_null(list);
    *names = 0;
    for (struct dirent *e; (e = readdir(list)) != NULL;) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(list), e->d_name, &st, 0) != 0)
            continue;
        sum += (uint64_t)st.st_size;
        ++*names;
    }
    closedir(list);
    return sum;
}

static inline unsigned char *file_bytes(uint64_t number, size_t size)
{
    unsigned char *bytes = malloc(size + 1);
    assert_non_null(bytes);
    value_fill(bytes, size, number);
    return bytes;
}

static inline int append_all(qf_store *store, qf_store_draft *draft, uint64_t number,
                             size_t size)
{
    unsigned char *bytes = file_bytes(number, size);
    int rc = 0;
    for (size_t off = 0, n = 1; off < size && rc == 0; off += n, n = n * 3 + 1) {
        n = n < size - off ? n : size - off;
        rc = qf_store_file_append(store, draft, bytes + off, n);
    }
    free(bytes);
    return rc;
}

static inline int origin_file(qf_store *store, uint64_t origin, uint64_t number,
                              size_t size)
{
    qf_store_draft *draft;
    int rc = qf_store_file_begin(store, file_key(number), origin, size, &draft);
    if (rc != 0)
        return rc;
    assert_int_equal(append_all(store, draft, number, size), 0);
    return qf_store_file_commit(store, draft, NULL, 0);
}

static inline int make_file(qf_store *store, uint64_t number, size_t size)
{
    return origin_file(store, 0, number, size);
}

static inline bool fd_has(int fd, uint64_t number, size_t size)
{
    unsigned char *want = file_bytes(number, size);
    unsigned char *got = malloc(size + 1);
    assert_non_null(got);
    bool same =
        pread(fd, got, size + 1, 0) == (ssize_t)size && memcmp(got, want, size) == 0;
    free(want);
    free(got);
    return same;
}

/* Whether it can be opened; if so its bytes must be right. */
static inline bool file_found(qf_store *store, uint64_t number, size_t size)
{
    int fd;
    if (qf_store_file_open(store, file_key(number), size, &fd) != 0)
        return false;
    if (!fd_has(fd, number, size)) {
        fprintf(stderr, "file %llu is wrong\n", (unsigned long long)number);
        abort();
    }
    close(fd);
    return true;
}

#endif
