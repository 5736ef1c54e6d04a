/* SPDX-License-Identifier: Apache-2.0 */
/* Raw requests and raw replies: exactly one of them for each, and the right one. */
#include "fs/fuse_client.h"

#define SHARD   "nf4/org/model/model.safetensors"
#define UNKNOWN UINT64_C(0x1234567890abcdef)

static struct client c;

static int setup(void **state)
{
    (void)state;
    client_begin(&c, NULL);
    return 0;
}

static int setup_init(void **state)
{
    setup(state);
    call_init(&c);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    client_end(&c);
    return 0;
}

static void test_init(void **state)
{
    (void)state;
    struct fuse_init_out out = call_init(&c);
    assert_int_equal(out.major, 7);
    assert_true(out.flags & FUSE_EXPORT_SUPPORT);
    assert_true(out.flags & FUSE_ASYNC_READ);
    assert_true(out.flags & FUSE_DO_READDIRPLUS);
    assert_true(out.flags & FUSE_READDIRPLUS_AUTO);
    assert_false(out.flags & (FUSE_AUTO_INVAL_DATA | FUSE_WRITEBACK_CACHE |
                              FUSE_SPLICE_READ | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE));
    assert_int_equal(out.max_background, 64);
    assert_int_equal(out.congestion_threshold, 48);
    /* pages of the largest request */
    assert_true(out.flags & FUSE_MAX_PAGES);
    assert_true(out.max_pages * 4096u >= QF_FUSE_READ_SIZE_MAX);
    /* a request before INIT is refused, INIT is not: this one was the first */
    assert_int_equal(call(&c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0), 0);
}

static void test_lookup(void **state)
{
    (void)state;
    struct fuse_entry_out e;
    assert_int_equal(call_lookup(&c, FUSE_ROOT_ID, "nf4", &e), 0);
    assert_int_equal(e.nodeid, qf_node_id("nf4", ""));
    assert_int_equal(e.attr.ino, e.nodeid);
    assert_true(S_ISDIR(e.attr.mode));
    assert_int_equal(e.entry_valid, 61);
    assert_int_equal(e.entry_valid_nsec, 500000000);
    assert_int_equal(e.attr_valid, 61);
    e = walk(&c, SHARD);
    assert_int_equal(e.attr.mode, S_IFREG | (e.attr.mode & 0555));
    assert_true(e.generation != 0);
    assert_int_equal(e.attr.size, sfx_entry(&c.s, SHARD).st.st_size);
    assert_int_equal(call_lookup(&c, FUSE_ROOT_ID, "absent", &e), -ENOENT);
    assert_int_equal(call_lookup(&c, FUSE_ROOT_ID, "", &e), -EINVAL);
    assert_int_equal(call_lookup(&c, FUSE_ROOT_ID, "nf4/org", &e), -EINVAL);
    assert_int_equal(call_lookup(&c, qf_node_id("nf4", ""), "absent", &e), -ENOENT);
    assert_int_equal(call_lookup(&c, UNKNOWN, "x", &e), -ESTALE);
    assert_int_equal(call_lookup(&c, 0, "x", &e), -ESTALE);
    assert_int_equal(call_lookup(&c, qf_node_id("nf4", "notes.txt"), "x", &e),
                     -ENOTDIR);
    char name[1025];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(call_lookup(&c, qf_node_id("nf4", ""), name, &e), -ENAMETOOLONG);
}

/* A file handle of NFS from before a restart: the id has never been handed out here. */
static void test_handle_from_before(void **state)
{
    (void)state;
    struct fuse_entry_out e, parent;
    uint64_t id = qf_node_id("int8", "org/model/config.json");
    assert_int_equal(call_lookup(&c, id, ".", &e), 0);
    assert_int_equal(e.nodeid, id);
    assert_int_equal(call_lookup(&c, id, "..", &parent), 0);
    assert_int_equal(parent.nodeid, qf_node_id("int8", "org/model"));
    assert_int_equal(walk(&c, "int8/org/model/config.json").generation, e.generation);
    assert_int_equal(call_lookup(&c, UNKNOWN, ".", &e), -ESTALE);
}

static void test_getattr(void **state)
{
    (void)state;
    struct fuse_getattr_in in = {0};
    struct fuse_attr_out out;
    struct fuse_entry_out e = walk(&c, SHARD);
    assert_int_equal(call(&c, FUSE_GETATTR, e.nodeid, &in, sizeof in), 0);
    assert_int_equal(c.reply_size, sizeof out);
    memcpy(&out, c.reply, sizeof out);
    /* the lookup has read the header */
    out.attr.atime = e.attr.atime;
    out.attr.atimensec = e.attr.atimensec;
    assert_memory_equal(&out.attr, &e.attr, sizeof out.attr);
    assert_int_equal(out.attr_valid, 61);
    assert_int_equal(call(&c, FUSE_GETATTR, FUSE_ROOT_ID, &in, sizeof in), 0);
    memcpy(&out, c.reply, sizeof out);
    assert_int_equal(out.attr.ino, FUSE_ROOT_ID);
    assert_int_equal(call(&c, FUSE_GETATTR, UNKNOWN, &in, sizeof in), -ESTALE);
}

static void test_read(void **state)
{
    (void)state;
    struct fuse_open_out open;
    size_t size;
    char *want = sfx_contents(&c.s, SHARD, &size);
    uint64_t node = walk(&c, SHARD).nodeid;
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_RDONLY, &open), 0);
    assert_int_equal(open.open_flags, FOPEN_KEEP_CACHE);
    for (size_t off = 0; off < size; off += 777) {
        size_t n = size - off < 4096 ? size - off : 4096;
        assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, off, 4096), 0);
        assert_int_equal(c.reply_size, n);
        assert_memory_equal(c.reply, want + off, n);
    }
    assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, 0, QF_FUSE_READ_SIZE_MAX),
                     0);
    assert_int_equal(c.reply_size, size);
    const uint64_t past[] = {size, size + 1, INT64_MAX};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, past[i], 4096), 0);
        assert_int_equal(c.reply_size, 0);
    }
    assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, UINT64_MAX, 1), -EINVAL);
    assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, 0, 0), 0);
    assert_int_equal(c.reply_size, 0);
    assert_int_equal(call_release(&c, FUSE_RELEASE, node, open.fh), 0);
    free(want);
}

static void test_open(void **state)
{
    (void)state;
    struct fuse_open_out open;
    uint64_t node = walk(&c, SHARD).nodeid;
    uint64_t status = walk(&c, ".quantfs/status").nodeid;
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_WRONLY, &open), -EROFS);
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_RDWR, &open), -EROFS);
    assert_int_equal(call_open(&c, FUSE_OPEN, walk(&c, "nf4").nodeid, 0, &open),
                     -EISDIR);
    assert_int_equal(call_open(&c, FUSE_OPEN, UNKNOWN, 0, &open), -ESTALE);
    assert_int_equal(call_open(&c, FUSE_OPENDIR, node, 0, &open), -ENOTDIR);
    assert_int_equal(call_open(&c, FUSE_OPENDIR, UNKNOWN, 0, &open), -ESTALE);
    /* no size before it is read, no page kept */
    assert_int_equal(call_open(&c, FUSE_OPEN, status, 0, &open), 0);
    assert_int_equal(open.open_flags, FOPEN_DIRECT_IO);
    assert_int_equal(call_read(&c, FUSE_READ, status, open.fh, 0, 65536), 0);
    assert_true(c.reply_size > 100);
    assert_memory_equal(c.reply, "version=", 8);
    assert_int_equal(call_release(&c, FUSE_RELEASE, status, open.fh), 0);
}

/* Whether the metrics, read as a file, have this line. */
static bool has_metric(const char *line)
{
    struct fuse_open_out open;
    uint64_t node = walk(&c, ".quantfs/metrics").nodeid;
    assert_int_equal(call_open(&c, FUSE_OPEN, node, O_RDONLY, &open), 0);
    assert_int_equal(open.open_flags, FOPEN_DIRECT_IO);
    assert_int_equal(call_read(&c, FUSE_READ, node, open.fh, 0, 65536), 0);
    bool found = memmem(c.reply, c.reply_size, line, strlen(line)) != NULL;
    assert_int_equal(call_release(&c, FUSE_RELEASE, node, open.fh), 0);
    return found;
}

/* One thread serves: a reply is counted before the next request is read. */
static void test_metrics(void **state)
{
    (void)state;
    struct fuse_entry_out e;
    struct fuse_forget_in one = {.nlookup = 1};
    for (int i = 0; i < 3; i++)
        assert_int_equal(call_lookup(&c, FUSE_ROOT_ID, "absent", &e), -ENOENT);
    assert_int_equal(call_lookup(&c, UNKNOWN, "x", &e), -ESTALE);
    assert_int_equal(call(&c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0), 0);
    send_request(&c, FUSE_FORGET, UNKNOWN, &one, sizeof one);
    assert_int_equal(call(&c, FUSE_MKNOD, FUSE_ROOT_ID, "12345678x", 10), -ENOSYS);
    assert_true(has_metric("quantfs_requests_total{kind=\"init\"} 1\n"));
    assert_true(has_metric("{kind=\"lookup\",errno=\"ENOENT\"} 3\n"));
    assert_true(has_metric("{kind=\"lookup\",errno=\"ESTALE\"} 1\n"));
    assert_true(has_metric("{kind=\"other\",errno=\"ENOSYS\"} 1\n"));
    assert_true(has_metric("quantfs_requests_total{kind=\"statfs\"} 1\n"));
    assert_true(has_metric("quantfs_requests_total{kind=\"forget\"} 1\n"));
    assert_true(has_metric("quantfs_requests_total{kind=\"read\"} 6\n"));
    assert_true(has_metric("quantfs_request_seconds_count{kind=\"read\"} 7\n"));
    /* four failed ones, and two in each of the nine walks */
    assert_true(has_metric("quantfs_requests_total{kind=\"lookup\"} 22\n"));
}

static int call_getxattr(uint64_t node, const char *name, uint32_t size)
{
    unsigned char body[256];
    struct fuse_getxattr_in in = {.size = size};
    memcpy(body, &in, sizeof in);
    strcpy((char *)body + sizeof in, name);
    return call(&c, FUSE_GETXATTR, node, body, sizeof in + strlen(name) + 1);
}

static int call_listxattr(uint64_t node, uint32_t size)
{
    struct fuse_getxattr_in in = {.size = size};
    return call(&c, FUSE_LISTXATTR, node, &in, sizeof in);
}

static void test_xattr(void **state)
{
    (void)state;
    static const char list[] = "user.quantfs.codec\0user.quantfs.settings\0"
                               "user.quantfs.source\0user.quantfs.size_source\0"
                               "user.quantfs.key";
    struct fuse_getxattr_out out;
    uint64_t node = walk(&c, SHARD).nodeid;
    assert_int_equal(call_getxattr(node, "user.quantfs.codec", 0), 0);
    assert_int_equal(c.reply_size, sizeof out);
    memcpy(&out, c.reply, sizeof out);
    assert_int_equal(out.size, 3);
    assert_int_equal(call_getxattr(node, "user.quantfs.codec", 2), -ERANGE);
    assert_int_equal(call_getxattr(node, "user.quantfs.codec", 3), 0);
    assert_int_equal(c.reply_size, 3);
    assert_memory_equal(c.reply, "nf4", 3);
    assert_int_equal(call_getxattr(node, "user.quantfs.nothing", 100), -ENODATA);
    assert_int_equal(call_getxattr(node, "security.capability", 20), -EOPNOTSUPP);
    assert_int_equal(call_getxattr(node, "system.posix_acl_access", 0), -EOPNOTSUPP);
    assert_int_equal(call_getxattr(UNKNOWN, "security.capability", 0), -EOPNOTSUPP);
    assert_int_equal(call_getxattr(UNKNOWN, "user.quantfs.codec", 0), -ESTALE);
    assert_int_equal(call_listxattr(node, 0), 0);
    memcpy(&out, c.reply, sizeof out);
    assert_int_equal(out.size, sizeof list);
    assert_int_equal(call_listxattr(node, sizeof list - 1), -ERANGE);
    assert_int_equal(call_listxattr(node, 4096), 0);
    assert_int_equal(c.reply_size, sizeof list);
    assert_memory_equal(c.reply, list, sizeof list);
    assert_int_equal(call_listxattr(FUSE_ROOT_ID, 4096), 0);
    assert_int_equal(c.reply_size, 0);
    assert_int_equal(call_listxattr(UNKNOWN, 0), -ESTALE);
    struct fuse_setxattr_in set = {.size = 0};
    unsigned char body[64] = {0};
    memcpy(body, &set, FUSE_COMPAT_SETXATTR_IN_SIZE);
    strcpy((char *)body + FUSE_COMPAT_SETXATTR_IN_SIZE, "user.x");
    assert_int_equal(call(&c, FUSE_SETXATTR, node, body, sizeof body), -EROFS);
    assert_int_equal(call_name(&c, FUSE_REMOVEXATTR, node, "user.x"), -EROFS);
}

static void test_stale(void **state)
{
    (void)state;
    struct fuse_open_out open, fresh;
    struct fuse_entry_out e = walk(&c, SHARD), again;
    uint64_t dir = walk(&c, "nf4/org/model").nodeid;
    assert_int_equal(call_open(&c, FUSE_OPEN, e.nodeid, 0, &open), 0);
    const struct timespec times[2] = {{9, 9}, {9, 9}};
    assert_int_equal(utimensat(AT_FDCWD, sfx_path(&c.s, "org/model/model.safetensors"),
                               times, 0),
                     0);
    assert_int_equal(call_read(&c, FUSE_READ, e.nodeid, open.fh, 0, 4096), -ESTALE);
    assert_int_equal(call_open(&c, FUSE_OPEN, e.nodeid, 0, &fresh), -ESTALE);
    struct fuse_getattr_in in = {0};
    assert_int_equal(call(&c, FUSE_GETATTR, e.nodeid, &in, sizeof in), -ESTALE);
    assert_int_equal(call_lookup(&c, dir, "model.safetensors", &again), 0);
    assert_int_equal(again.nodeid, e.nodeid);
    assert_int_not_equal(again.generation, e.generation);
    assert_int_equal(call_open(&c, FUSE_OPEN, e.nodeid, 0, &fresh), 0);
    assert_int_equal(call_read(&c, FUSE_READ, e.nodeid, fresh.fh, 0, 4096), 0);
    assert_int_equal(call_read(&c, FUSE_READ, e.nodeid, open.fh, 0, 4096), -ESTALE);
    assert_int_equal(call_release(&c, FUSE_RELEASE, e.nodeid, open.fh), 0);
    assert_int_equal(call_release(&c, FUSE_RELEASE, e.nodeid, fresh.fh), 0);
}

/* ---- directories ---- */

/* Reads a directory in replies of `size` bytes; the names, in the order told. */
static size_t list(uint64_t node, bool plus, uint32_t size, char names[16][64],
                   uint64_t ids[16])
{
    struct fuse_open_out open;
    size_t count = 0;
    uint64_t off = 0;
    assert_int_equal(call_open(&c, FUSE_OPENDIR, node, 0, &open), 0);
    for (;;) {
        uint32_t op = plus ? FUSE_READDIRPLUS : FUSE_READDIR;
        assert_int_equal(call_read(&c, op, node, open.fh, off, size), 0);
        assert_true(c.reply_size <= size);
        if (c.reply_size == 0)
            break;
        for (size_t at = 0; at < c.reply_size;) {
            struct fuse_entry_out entry = {0};
            struct fuse_dirent d;
            size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
            if (plus)
                memcpy(&entry, c.reply + at, sizeof entry);
            memcpy(&d, c.reply + at + (plus ? sizeof entry : 0), FUSE_NAME_OFFSET);
            assert_true(count < 16 && d.namelen < 64);
            memcpy(names[count], c.reply + at + head, d.namelen);
            names[count][d.namelen] = '\0';
            bool dots =
                strcmp(names[count], ".") == 0 || strcmp(names[count], "..") == 0;
            if (plus)
                assert_int_equal(entry.nodeid, dots ? 0 : d.ino);
            if (plus && !dots)
                assert_int_equal(entry.attr.mode >> 12, d.type);
            ids[count++] = d.ino;
            off = d.off;
            at += FUSE_DIRENT_ALIGN(head + d.namelen);
        }
    }
    assert_int_equal(call_release(&c, FUSE_RELEASEDIR, node, open.fh), 0);
    return count;
}

static void test_readdir(void **state)
{
    (void)state;
    char names[16][64];
    uint64_t ids[16];
    uint64_t node = walk(&c, "nf4/org/model").nodeid;
    const uint32_t sizes[] = {4096, 250, 180};
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(list(node, i % 2 == 0, sizes[i / 2], names, ids), 5);
        assert_string_equal(names[0], ".");
        assert_int_equal(ids[0], node);
        assert_string_equal(names[1], "..");
        assert_int_equal(ids[1], qf_node_id("nf4", "org"));
        bool shard = false;
        for (size_t k = 2; k < 5; k++) {
            char path[128];
            snprintf(path, sizeof path, "org/model/%s", names[k]);
            assert_int_equal(ids[k], qf_node_id("nf4", path));
            shard = shard || strcmp(names[k], "model.safetensors") == 0;
        }
        assert_true(shard);
    }
    /* too small for any entry */
    struct fuse_open_out open;
    assert_int_equal(call_open(&c, FUSE_OPENDIR, node, 0, &open), 0);
    assert_int_equal(call_read(&c, FUSE_READDIRPLUS, node, open.fh, 2, 8), 0);
    assert_int_equal(c.reply_size, 0);
    assert_int_equal(call_read(&c, FUSE_READDIR, node, open.fh, UINT64_MAX, 4096), 0);
    assert_int_equal(c.reply_size, 0);
    /* one that has gone is left out of a listing with attributes */
    assert_int_equal(unlink(sfx_path(&c.s, "org/model/README.md")), 0);
    assert_int_equal(call_read(&c, FUSE_READDIRPLUS, node, open.fh, 0, 4096), 0);
    assert_null(memmem(c.reply, c.reply_size, "README.md", 9));
    assert_non_null(memmem(c.reply, c.reply_size, "model.safetensors", 17));
    assert_int_equal(call_release(&c, FUSE_RELEASEDIR, node, open.fh), 0);
}

/* Every reference that was given out can be given back, and nothing is left. */
static void test_forget(void **state)
{
    (void)state;
    char names[16][64];
    uint64_t ids[16];
    struct {
        struct fuse_batch_forget_in head;
        struct fuse_forget_one one[8];
    } batch = {0};
    size_t n = 0;
    const char *paths[] = {"nf4", "nf4/org", "nf4/org/model"};
    for (size_t i = 0; i < 3; i++)
        walk(&c, paths[i]);
    uint64_t node = qf_node_id("nf4", "org/model");
    size_t count = list(node, true, 180, names, ids);
    assert_int_equal(count, 5);
    assert_int_equal(c.s.tree->nodes.count, 6);
    for (size_t i = 2; i < count; i++)
        batch.one[n++] = (struct fuse_forget_one){.nodeid = ids[i], .nlookup = 1};
    batch.one[n++] = (struct fuse_forget_one){.nodeid = node, .nlookup = 1};
    batch.one[n++] = (struct fuse_forget_one){.nodeid = UNKNOWN, .nlookup = 100};
    batch.head.count = (uint32_t)n;
    /* neither has a reply: the next call would find it instead of its own */
    send_request(&c, FUSE_BATCH_FORGET, 0, &batch, sizeof batch);
    struct fuse_forget_in one = {.nlookup = 3};
    send_request(&c, FUSE_FORGET, qf_node_id("nf4", ""), &one, sizeof one);
    one.nlookup = 2;
    send_request(&c, FUSE_FORGET, qf_node_id("nf4", "org"), &one, sizeof one);
    assert_int_equal(call(&c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0), 0);
    assert_int_equal(c.s.tree->nodes.count, 0);
}

static void test_statfs(void **state)
{
    (void)state;
    struct fuse_statfs_out out;
    assert_int_equal(call(&c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0), 0);
    assert_int_equal(c.reply_size, sizeof out);
    memcpy(&out, c.reply, sizeof out);
    assert_true(out.st.blocks > 0);
    assert_int_equal(out.st.bavail, 0);
    assert_int_equal(out.st.ffree, 0);
}

/* Everything that would change something, or that we do not have. */
static void test_refused(void **state)
{
    (void)state;
    static const uint32_t ops[] = {FUSE_SETATTR,
                                   FUSE_READLINK,
                                   FUSE_SYMLINK,
                                   FUSE_MKNOD,
                                   FUSE_MKDIR,
                                   FUSE_UNLINK,
                                   FUSE_RMDIR,
                                   FUSE_RENAME,
                                   FUSE_RENAME2,
                                   FUSE_LINK,
                                   FUSE_WRITE,
                                   FUSE_SETXATTR,
                                   FUSE_REMOVEXATTR,
                                   FUSE_CREATE,
                                   FUSE_FSYNC,
                                   FUSE_FLUSH,
                                   FUSE_FALLOCATE,
                                   FUSE_IOCTL,
                                   FUSE_FSYNCDIR,
                                   FUSE_ACCESS,
                                   FUSE_BMAP,
                                   FUSE_COPY_FILE_RANGE,
                                   FUSE_LSEEK,
                                   FUSE_GETLK,
                                   9999};
    unsigned char body[256] = {0};
    uint64_t node = walk(&c, SHARD).nodeid;
    memset(body + 100, 'x', 20);
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        int rc = call(&c, ops[i], node, body, sizeof body);
        if (rc != -ENOSYS && rc != -EROFS)
            fail_msg("operation %u: %d", ops[i], rc);
    }
    /* and it lives */
    assert_int_equal(call(&c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0), 0);
    assert_int_equal(call(&c, FUSE_DESTROY, 0, NULL, 0), 0);
}

int main(void)
{
#define WITH_INIT(test) cmocka_unit_test_setup_teardown(test, setup_init, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_init, setup, teardown),
        WITH_INIT(test_lookup),
        WITH_INIT(test_handle_from_before),
        WITH_INIT(test_getattr),
        WITH_INIT(test_read),
        WITH_INIT(test_open),
        WITH_INIT(test_metrics),
        WITH_INIT(test_xattr),
        WITH_INIT(test_stale),
        WITH_INIT(test_readdir),
        WITH_INIT(test_forget),
        WITH_INIT(test_statfs),
        WITH_INIT(test_refused),
    };
    return cmocka_run_group_tests_name("fuse_session", tests, NULL, NULL);
}
