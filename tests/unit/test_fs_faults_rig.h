/* SPDX-License-Identifier: Apache-2.0 */
/* A mount without FUSE and what a user does with it, each step judged: it gives the
 * bytes that it gives without faults, or an error that the fault may lead to. */
#ifndef QF_TESTS_UNIT_TEST_FS_FAULTS_RIG_H
#define QF_TESTS_UNIT_TEST_FS_FAULTS_RIG_H

#include "test_engine_faults.h"

#include <dirent.h>

#include "base/log.h"
#include "fs/file.h"
#include "fs/tree.h"
#include "support/faults.h"

#define VIEWS     "nf4:dq:int8"
#define FILES_MAX 16
#define OPEN_MAX  3

/* ---- what there is ---- */

/* A file of the mount as it is without faults. */
struct file_ref {
    const char *path;
    char *bytes; /* owned; NULL until known */
    size_t size;
    char *plain; /* the source's; owned */
    size_t plain_size;
};

/* What one case may lead to. */
struct judge {
    const char *what;
    long at;
    bool onwards;
    const int *allowed; /* errnos (positive), ended by 0; NULL: none */
    bool may_hide;      /* links, because they seem to lead nowhere */
    bool may_be_plain;  /* a model that may not be read is shown as it lies there */
    bool plain_seen;
    long errors;
};

static struct judge judge;

static inline void die(const char *what, const char *path, int rc)
{
    (void)faults_disarm();
    fprintf(stderr, "%s, call %ld%s: %s %s: %d (%s)\n", judge.what, judge.at,
            judge.onwards ? " and all later ones" : "", what, path, rc, strerror(-rc));
    abort();
}

static inline void on_alarm(int number)
{
    (void)number;
    static const char text[] = "hangs: ";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    ignored = write(STDERR_FILENO, judge.what, strlen(judge.what));
    (void)ignored;
    abort();
}

/* Whether the step went well; else its error must be one that is allowed. */
static inline bool is_fine(int rc, const char *what, const char *path)
{
    if (rc == 0)
        return true;
    const int *allowed = judge.allowed;
    while (allowed != NULL && *allowed != 0 && *allowed != -rc)
        allowed++;
    if (allowed == NULL || *allowed == 0)
        die(what, path, rc);
    judge.errors++;
    return false;
}

static inline unsigned count_fds(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

/* ---- the mount ---- */

struct rig {
    const char *source; /* the store's directory */
    const char *cache;  /* the LMDB store's; NULL: in memory */
    qf_root *root;
    struct fault_backend backend;
    struct fault_store store;
    struct qf_view views[QF_VIEWS_MAX];
    size_t view_count;
    qf_engine *engine;
    qf_tree *tree;
    qf_file *files[OPEN_MAX];
    unsigned fds; /* with nothing under way */
};

static inline int rig_store(struct rig *r)
{
    struct qf_err err = {""};
    const struct qf_store_lmdb_options options = {.dir = r->cache,
                                                  .bytes_limit = QF_CACHE_SIZE_MIN};
    qf_store *store = NULL;
    int rc = r->cache == NULL ? qf_store_mem_open(64u << 20, &store)
                              : qf_store_lmdb_open(&options, &store, &err);
    if (rc == 0)
        fault_store_init(&r->store, store);
    return rc;
}

/* The engine and the tree, over the rest. */
static inline int rig_start(struct rig *r)
{
    const struct qf_engine_options engine = {.backend = &r->backend.base,
                                             .store = &r->store.base,
                                             .thread_count = 1,
                                             .memory_limit = QF_ENGINE_MEMORY_MIN};
    int rc = qf_engine_new(&engine, &r->engine);
    const struct qf_tree_options tree = {.root = r->root,
                                         .views = r->views,
                                         .view_count = r->view_count,
                                         .engine = r->engine,
                                         .store = &r->store.base};
    return rc == 0 ? qf_tree_new(&tree, &r->tree) : rc;
}

static inline void rig_stop(struct rig *r)
{
    qf_tree_free(r->tree);
    qf_engine_free(r->engine);
    r->tree = NULL;
    r->engine = NULL;
}

static inline void rig_close(struct rig *r)
{
    rig_stop(r);
    if (r->store.real != NULL)
        fault_store_fini(&r->store);
    qf_backend_close(r->backend.real);
    qf_root_close(r->root);
}

static inline int rig_open(struct rig *r, const char *source, const char *cache)
{
    static const struct qf_backend_ops ops = {.name = "fault", .encode = fault_encode};
    *r = (struct rig){.source = source, .cache = cache, .backend.base.ops = &ops};
    int rc = qf_root_open(source, &r->root, NULL);
    if (rc == 0)
        rc = qf_view_parse_list(VIEWS, r->views, &r->view_count, NULL);
    if (rc == 0)
        rc = qf_cpu_backend_open(NULL, &r->backend.real, NULL);
    if (rc == 0)
        rc = rig_store(r);
    if (rc == 0)
        rc = rig_start(r);
    if (rc != 0)
        rig_close(r);
    return rc;
}

/* Waits until the workers have let go of everything. */
static inline void rig_settle(struct rig *r)
{
    qf_store_flush(&r->store.base);
    for (int i = 0; count_fds() != r->fds; i++) {
        if (i == 20000)
            die("descriptors are left open", "", (int)(r->fds - count_fds()));
        usleep(500);
    }
}

/* ---- reading ---- */

static inline bool is_part(const char *whole, size_t whole_size, size_t off,
                           const struct iovec *piece)
{
    return whole != NULL && off <= whole_size && piece->iov_len <= whole_size - off &&
           memcmp(whole + off, piece->iov_base, piece->iov_len) == 0;
}

/* The whole file, which must be one or the other. */
static inline void read_whole(qf_file *file, const struct file_ref *ref, size_t size)
{
    bool as_view = true;
    bool as_plain = judge.may_be_plain;
    for (size_t off = 0;;) {
        struct qf_file_read read;
        if (!is_fine(qf_file_read(file, off, size, &read), "read", ref->path))
            return;
        for (size_t i = 0; i < read.piece_count; off += read.pieces[i++].iov_len) {
            as_view &= is_part(ref->bytes, ref->size, off, &read.pieces[i]);
            as_plain &= is_part(ref->plain, ref->plain_size, off, &read.pieces[i]);
        }
        bool end = read.size == 0;
        qf_file_read_done(&read);
        if (end) {
            as_view &= off == ref->size;
            as_plain &= off == ref->plain_size;
        }
        if (!as_view && !as_plain)
            die("WRONG BYTES", ref->path, 0);
        if (end)
            return;
    }
}

static inline int walk(struct rig *r, const char *path, struct qf_entry *out)
{
    char name[256];
    uint64_t id = QF_NODE_ROOT;
    int rc = 0;
    while (*path != '\0' && rc == 0) {
        size_t n = strcspn(path, "/");
        memcpy(name, path, n);
        name[n] = '\0';
        path += n + (path[n] == '/');
        rc = qf_tree_lookup(r->tree, id, name, out);
        id = out->st.st_ino;
    }
    return rc;
}

/* As the kernel does it: after ESTALE once more, from the name. */
static inline int open_path(struct rig *r, const char *path, struct qf_entry *entry,
                            qf_file **out)
{
    int rc = -ESTALE;
    for (int attempt = 0; attempt < 2 && rc == -ESTALE; attempt++) {
        rc = walk(r, path, entry);
        if (rc == 0)
            rc = qf_tree_getattr(r->tree, entry->st.st_ino, entry);
        if (rc == 0)
            rc = qf_file_open(r->tree, entry->st.st_ino, out);
    }
    return rc;
}

static inline void visit_file(struct rig *r, const struct file_ref *ref)
{
    struct qf_entry entry;
    qf_file *file;
    if (!is_fine(open_path(r, ref->path, &entry, &file), "open", ref->path))
        return;
    size_t size = (size_t)entry.st.st_size;
    if (size != ref->size && !(judge.may_be_plain && size == ref->plain_size))
        die("WRONG SIZE", ref->path, 0);
    judge.plain_seen |= size != ref->size;
    read_whole(file, ref, 40000);
    qf_file_close(file);
    qf_tree_forget(r->tree, entry.st.st_ino, 1000);
}

/* A listing must hold `names`, all of them and nothing else; the last is a link. */
static inline void visit_dir(struct rig *r, const char *path, const char *const *names,
                             size_t count)
{
    struct qf_entry entry = {.st.st_ino = QF_NODE_ROOT};
    qf_dir *dir;
    size_t found = 0;
    if (!is_fine(walk(r, path, &entry), "lookup", path) ||
        !is_fine(qf_tree_opendir(r->tree, entry.st.st_ino, &dir), "opendir", path))
        return;
    for (size_t i = 2; i < qf_dir_count(dir); i++) {
        uint64_t id;
        unsigned type;
        const char *name = qf_dir_entry(dir, i, &id, &type);
        size_t k = 0;
        while (k < count && strcmp(names[k], name) != 0)
            k++;
        if (k == count)
            die("a name too many", name, 0);
        found++;
    }
    size_t want = qf_dir_count(dir) - 2;
    qf_dir_close(dir);
    if (want != found || found + judge.may_hide < count || found > count)
        die("names are missing", path, 0);
}

/* The status file has no contents to compare with. */
static inline void visit_status(struct rig *r)
{
    static const char path[] = ".quantfs/status";
    struct qf_entry entry;
    struct qf_file_read read;
    struct statvfs fs;
    qf_file *file;
    if (is_fine(qf_tree_statfs(r->tree, &fs), "statfs", "") && fs.f_bfree != 0)
        die("room to write", "", 0);
    if (!is_fine(open_path(r, path, &entry, &file), "open", path))
        return;
    if (is_fine(qf_file_read(file, 0, 100000, &read), "read", path)) {
        if (memmem(read.pieces[0].iov_base, read.size, "chunks_encoded=", 15) == NULL)
            die("not a status", path, 0);
        qf_file_read_done(&read);
    }
    qf_file_close(file);
}

/* ---- references ---- */

static inline char *load_plain(const char *dir, const char *path, size_t *size)
{
    char full[4096];
    struct stat st;
    snprintf(full, sizeof full, "%s/%s", dir, path);
    FILE *file = fopen(full, "rb");
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &st), 0);
    *size = (size_t)st.st_size;
    char *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

/* Fills ref in from a mount without faults. */
static inline void make_ref(struct rig *r, struct file_ref *ref)
{
    struct qf_entry entry;
    struct qf_buf all = {0};
    qf_file *file;
    assert_int_equal(open_path(r, ref->path, &entry, &file), 0);
    for (size_t n = 1; n != 0;) {
        struct qf_file_read read;
        assert_int_equal(qf_file_read(file, all.size, 300000, &read), 0);
        for (size_t i = 0; i < read.piece_count; i++)
            qf_buf_append(&all, read.pieces[i].iov_base, read.pieces[i].iov_len);
        n = read.size;
        qf_file_read_done(&read);
    }
    qf_file_close(file);
    ref->bytes = qf_buf_take(&all, &ref->size);
    assert_non_null(ref->bytes);
    assert_int_equal(ref->size, entry.st.st_size);
    ref->plain = load_plain(r->source, strchr(ref->path, '/') + 1, &ref->plain_size);
}

#endif
