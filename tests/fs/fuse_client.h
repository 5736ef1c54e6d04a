/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's side of the FUSE protocol, over a stream socket, and a libfuse session
 * with our operations on the other end. */
#ifndef QF_TESTS_FS_FUSE_CLIENT_H
#define QF_TESTS_FS_FUSE_CLIENT_H

#define FUSE_USE_VERSION 314
#include "unit/test_fs_fixture.h"

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/limits.h"
#include "fs/fuse_ll.h"
#include "fs/tree_private.h"

#define ATTR_TTL   61.5
#define REPLY_SIZE (QF_FUSE_READ_SIZE_MAX + 4096u)

struct client {
    struct sfx s;
    struct qf_fuse_context context;
    struct qf_passthrough_device device;
    qf_handles *handles;
    struct fuse_session *session;
    int ends[2]; /* ours, the session's */
    pthread_t thread;
    uint64_t unique;
    struct fuse_out_header out; /* of the last reply */
    unsigned char reply[REPLY_SIZE];
    size_t reply_size;
};

static inline bool read_exactly(int fd, void *to, size_t size)
{
    for (char *p = to; size > 0;) {
        ssize_t n = read(fd, p, size);
        if (n <= 0)
            return false;
        p += n;
        size -= (size_t)n;
    }
    return true;
}

static inline bool write_exactly(int fd, const void *from, size_t size)
{
    for (const char *p = from; size > 0;) {
        ssize_t n = write(fd, p, size);
        if (n <= 0)
            return false;
        p += n;
        size -= (size_t)n;
    }
    return true;
}

/* What /dev/fuse does: one request a read, one reply a write. */
static inline ssize_t session_read(int fd, void *buf, size_t size)
{
    struct fuse_in_header header;
    if (!read_exactly(fd, &header, sizeof header))
        return 0;
    if (header.len > size || header.len < sizeof header)
        return -1;
    memcpy(buf, &header, sizeof header);
    if (!read_exactly(fd, (char *)buf + sizeof header, header.len - sizeof header))
        return 0;
    return header.len;
}

static inline ssize_t session_writev(int fd, const struct iovec *iov, int count)
{
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        if (!write_exactly(fd, iov[i].iov_base, iov[i].iov_len))
            return -1;
        total += (ssize_t)iov[i].iov_len;
    }
    return total;
}

static inline void *session_main(void *arg)
{
    return (void *)(intptr_t)fuse_session_loop(arg);
}

/* ---- requests ---- */

static inline void send_request(struct client *c, uint32_t opcode, uint64_t node,
                                const void *body, size_t size)
{
    struct fuse_in_header header = {.len = (uint32_t)(sizeof header + size),
                                    .opcode = opcode,
                                    .unique = ++c->unique,
                                    .nodeid = node};
    assert_true(write_exactly(c->ends[0], &header, sizeof header));
    assert_true(write_exactly(c->ends[0], body, size));
}

/* Sends and waits for the reply, which must be to this request; returns its error. */
static inline int call(struct client *c, uint32_t opcode, uint64_t node,
                       const void *body, size_t size)
{
    send_request(c, opcode, node, body, size);
    assert_true(read_exactly(c->ends[0], &c->out, sizeof c->out));
    assert_int_equal(c->out.unique, c->unique);
    c->reply_size = c->out.len - sizeof c->out;
    assert_true(c->reply_size <= REPLY_SIZE);
    assert_true(read_exactly(c->ends[0], c->reply, c->reply_size));
    if (c->out.error != 0)
        assert_int_equal(c->reply_size, 0);
    return c->out.error;
}

static inline int call_name(struct client *c, uint32_t opcode, uint64_t node,
                            const char *name)
{
    return call(c, opcode, node, name, strlen(name) + 1);
}

static inline int call_lookup(struct client *c, uint64_t node, const char *name,
                              struct fuse_entry_out *out)
{
    int rc = call_name(c, FUSE_LOOKUP, node, name);
    if (rc != 0)
        return rc;
    assert_int_equal(c->reply_size, sizeof *out);
    memcpy(out, c->reply, sizeof *out);
    return 0;
}

/* The node of a path in the mount. */
static inline struct fuse_entry_out walk(struct client *c, const char *path)
{
    struct fuse_entry_out out = {.nodeid = FUSE_ROOT_ID};
    char copy[512];
    snprintf(copy, sizeof copy, "%s", path);
    char *rest = copy;
    for (char *name; (name = strsep(&rest, "/")) != NULL;)
        if (call_lookup(c, out.nodeid, name, &out) != 0)
            fail_msg("%s: %s", path, strerror(-c->out.error));
    return out;
}

static inline int call_open(struct client *c, uint32_t opcode, uint64_t node,
                            uint32_t flags, struct fuse_open_out *out)
{
    struct fuse_open_in in = {.flags = flags};
    int rc = call(c, opcode, node, &in, sizeof in);
    if (rc != 0)
        return rc;
    assert_int_equal(c->reply_size, sizeof *out);
    memcpy(out, c->reply, sizeof *out);
    return 0;
}

static inline int call_read(struct client *c, uint32_t opcode, uint64_t node,
                            uint64_t fh, uint64_t off, uint32_t size)
{
    struct fuse_read_in in = {.fh = fh, .offset = off, .size = size};
    return call(c, opcode, node, &in, sizeof in);
}

static inline int call_release(struct client *c, uint32_t opcode, uint64_t node,
                               uint64_t fh)
{
    struct fuse_release_in in = {.fh = fh};
    return call(c, opcode, node, &in, sizeof in);
}

static inline struct fuse_init_out call_init(struct client *c)
{
    struct fuse_init_out out;
    /* as Linux 5.10 does, and every flag that it may have */
    const uint32_t in[4] = {7, 31, 1u << 20, 0x3ffffff};
    assert_int_equal(call(c, FUSE_INIT, 0, in, sizeof in), 0);
    assert_int_equal(c->reply_size, sizeof out);
    memcpy(&out, c->reply, sizeof out);
    return out;
}

/* ---- both ends ---- */

/* `prepare` (or NULL) is called before the tree is opened, the store being there. */
static inline void client_begin(struct client *c, void (*prepare)(struct client *c))
{
    char words[32];
    snprintf(words, sizeof words, "max_read=%u", QF_FUSE_READ_SIZE_MAX);
    char *argv[] = {(char *)"test", (char *)"-o", words, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    memset(c, 0, sizeof *c);
    sfx_begin(&c->s);
    sfx_model(&c->s, "org/model");
    tmpdir_write_text(c->s.dir, "notes.txt", "text");
    if (prepare != NULL)
        prepare(c);
    sfx_open(&c->s, "nf4:int8");
    assert_int_equal(qf_handles_new(c->s.tree, NULL, &c->handles), 0);
    c->context = (struct qf_fuse_context){.tree = c->s.tree,
                                          .handles = c->handles,
                                          .attr_ttl_s = ATTR_TTL,
                                          .passthrough = c->s.passthrough,
                                          .device = c->device,
                                          .read = session_read,
                                          .writev = session_writev};
    c->session =
        fuse_session_new(&args, qf_fuse_ops(), sizeof *qf_fuse_ops(), &c->context);
    assert_non_null(c->session);
    fuse_opt_free_args(&args);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, c->ends), 0);
    assert_int_equal(fuse_session_custom_io(c->session, qf_fuse_io(), c->ends[1]), 0);
    assert_int_equal(pthread_create(&c->thread, NULL, session_main, c->session), 0);
}

static inline void client_end(struct client *c)
{
    void *result;
    shutdown(c->ends[0], SHUT_RDWR);
    pthread_join(c->thread, &result);
    fuse_session_destroy(c->session); /* closes its end */
    close(c->ends[0]);
    qf_handles_free(c->handles);
    sfx_close(&c->s);
    sfx_end(&c->s);
}

#endif
