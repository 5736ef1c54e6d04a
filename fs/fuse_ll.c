/* SPDX-License-Identifier: Apache-2.0 */
/* Exactly one reply on every path, and the one place where our errors become the
 * kernel's. Contents never change under a (node id, generation) pair, so pages are kept
 * across opens (FOPEN_KEEP_CACHE) and names may be trusted for long: an open that finds
 * other contents answers ESTALE, upon which the kernel looks the name up again.
 *
 * Passthrough: libfuse sends a reply in the thread that made it, so what is to be put
 * into the next reply waits in that thread. It reads requests and calls us in the same
 * thread, too; so one place sees every request and every reply, and counts them. */
#define FUSE_USE_VERSION 314
#include "fs/fuse_ll.h"

#include <dirent.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "fs/file.h"
#include "fs/fuse_wire.h"
#include "fs/xattr.h"

#define MAX_BACKGROUND 64

/* The request that this thread is at. */
static _Thread_local struct qf_metrics_request request = {.kind = QF_METRICS_NONE};

/* What this thread's next reply is to become. */
static _Thread_local struct {
    bool init;   /* it answers INIT, and the kernel offers passthrough */
    int backing; /* not 0: it answers OPEN, with this backing file */
} next_reply;

static struct qf_fuse_context *context_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static qf_tree *tree_of(fuse_req_t req)
{
    return context_of(req)->tree;
}

static void reply_error(fuse_req_t req, int rc)
{
    /* -EBADMSG is our word for malformed input; readers know EIO. */
    fuse_reply_err(req, rc == -EBADMSG ? EIO : -rc);
}

static struct fuse_entry_param entry_param(fuse_req_t req, const struct qf_entry *entry)
{
    double ttl = context_of(req)->attr_ttl_s;
    return (struct fuse_entry_param){
        .ino = entry->st.st_ino,
        .generation = entry->generation,
        .attr = entry->st,
        .attr_timeout = ttl,
        .entry_timeout = ttl,
    };
}

static void want(struct fuse_conn_info *conn, unsigned capability)
{
    if (conn->capable & capability)
        conn->want |= capability;
}

static void ll_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    want(conn, FUSE_CAP_EXPORT_SUPPORT);
    want(conn, FUSE_CAP_ASYNC_READ);
    want(conn, FUSE_CAP_PARALLEL_DIROPS);
    want(conn, FUSE_CAP_READDIRPLUS);
    want(conn, FUSE_CAP_READDIRPLUS_AUTO);
    /* Contents are fixed for a generation: no need to ask before each cached read. */
    conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    /* Replies go by writev from memory: measured faster than splicing. */
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
                              FUSE_CAP_SPLICE_MOVE);
    conn->max_read = QF_FUSE_READ_SIZE_MAX;
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
}

static void ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct qf_entry entry;
    int rc = qf_tree_lookup(tree_of(req), parent, name, &entry);
    if (rc != 0) {
        reply_error(req, rc);
        return;
    }
    struct fuse_entry_param param = entry_param(req, &entry);
    if (fuse_reply_entry(req, &param) != 0)
        qf_tree_forget(tree_of(req), entry.st.st_ino, 1);
}

static void ll_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
    qf_tree_forget(tree_of(req), ino, count);
    fuse_reply_none(req);
}

static void ll_forget_multi(fuse_req_t req, size_t count,
                            struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        qf_tree_forget(tree_of(req), forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

static void ll_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct qf_entry entry;
    int rc = qf_tree_getattr(tree_of(req), ino, &entry);
    if (rc != 0)
        reply_error(req, rc);
    else
        fuse_reply_attr(req, &entry.st, context_of(req)->attr_ttl_s);
}

/* The open of a view shard is counted, whatever becomes of it. */
static int count_open(fuse_req_t req, fuse_ino_t ino, const qf_file *file)
{
    qf_passthrough *passthrough = context_of(req)->passthrough;
    uint64_t generation;
    int fd;
    if (passthrough == NULL || !qf_file_sealed(file, &generation, &fd))
        return 0;
    return qf_passthrough_open(passthrough, ino, generation, fd);
}

static void count_release(fuse_req_t req, fuse_ino_t ino, const qf_file *file)
{
    qf_passthrough *passthrough = context_of(req)->passthrough;
    uint64_t generation;
    int fd;
    if (passthrough != NULL && qf_file_sealed(file, &generation, &fd))
        qf_passthrough_release(passthrough, ino, generation);
}

static void ll_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if ((fi->flags & O_ACCMODE) != O_RDONLY) {
        reply_error(req, -EROFS);
        return;
    }
    qf_file *file;
    int rc = qf_file_open(tree_of(req), ino, &file);
    if (rc != 0) {
        reply_error(req, rc);
        return;
    }
    int backing = count_open(req, ino, file);
    if (backing < 0) {
        qf_file_close(file);
        reply_error(req, backing);
        return;
    }
    fi->fh = (uint64_t)(uintptr_t)file;
    fi->direct_io = qf_file_is_dynamic(file);
    fi->keep_cache = !fi->direct_io && backing == 0;
    next_reply.backing = backing;
    rc = fuse_reply_open(req, fi);
    next_reply.backing = 0;
    if (rc != 0) {
        count_release(req, ino, file);
        qf_file_close(file);
    }
}

static void ll_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    qf_file *file = (qf_file *)(uintptr_t)fi->fh;
    count_release(req, ino, file);
    qf_file_close(file);
    fuse_reply_err(req, 0);
}

/* A reader tries again and again, and may be one of many. */
static void log_read_error(fuse_req_t req, fuse_ino_t ino, int rc)
{
    char *name = qf_tree_name(tree_of(req), ino);
    if (name != NULL)
        qf_log_repeated(QF_LOG_WARN, name, "cannot be read: %s",
                        rc == -ESTALE ? "the source has changed since it was opened"
                                      : strerror(-rc));
    free(name);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    struct qf_file_read read;
    int rc = off < 0 ? -EINVAL
                     : qf_file_read((qf_file *)(uintptr_t)fi->fh, (uint64_t)off, size,
                                    &read);
    if (rc != 0) {
        log_read_error(req, ino, rc);
        reply_error(req, rc);
        return;
    }
    fuse_reply_iov(req, read.pieces, (int)read.piece_count);
    qf_file_read_done(&read);
}

static void ll_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    qf_dir *dir;
    int rc = qf_tree_opendir(tree_of(req), ino, &dir);
    if (rc != 0) {
        reply_error(req, rc);
        return;
    }
    fi->fh = (uint64_t)(uintptr_t)dir;
    if (fuse_reply_open(req, fi) != 0)
        qf_dir_close(dir);
}

static void ll_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    qf_dir_close((qf_dir *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static size_t add_plain(fuse_req_t req, char *to, size_t room, const qf_dir *dir,
                        size_t index)
{
    uint64_t id;
    unsigned type;
    const char *name = qf_dir_entry(dir, index, &id, &type);
    struct stat st = {.st_ino = id, .st_mode = DTTOIF(type)};
    return fuse_add_direntry(req, to, room, name, &st, (off_t)index + 1);
}

/* With attributes; 0: the entry has gone meanwhile and is left out. The kernel takes a
 * reference on each entry but the dots. */
static size_t add_plus(fuse_req_t req, fuse_ino_t ino, char *to, size_t room,
                       const qf_dir *dir, size_t index)
{
    uint64_t id;
    unsigned type;
    const char *name = qf_dir_entry(dir, index, &id, &type);
    struct fuse_entry_param param = {.attr = {.st_ino = id, .st_mode = DTTOIF(type)}};
    if (!is_dots(name)) {
        struct qf_entry entry;
        int rc = qf_tree_lookup(tree_of(req), ino, name, &entry);
        if (rc == -ENOENT)
            return 0;
        /* Any other trouble is told when the name is looked up, not by hiding it. */
        if (rc == 0)
            param = entry_param(req, &entry);
    }
    size_t size = fuse_add_direntry_plus(req, to, room, name, &param, (off_t)index + 1);
    if (size > room && param.ino != 0)
        qf_tree_forget(tree_of(req), param.ino, 1);
    return size;
}

static void read_dir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                     struct fuse_file_info *fi, bool plus)
{
    const qf_dir *dir = (const qf_dir *)(uintptr_t)fi->fh;
    char *reply = malloc(size);
    if (reply == NULL) {
        reply_error(req, -ENOMEM);
        return;
    }
    size_t used = 0;
    for (size_t i = (size_t)off; i < qf_dir_count(dir); i++) {
        size_t n = plus ? add_plus(req, ino, reply + used, size - used, dir, i)
                        : add_plain(req, reply + used, size - used, dir, i);
        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, reply, used);
    free(reply);
}

static void ll_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                       struct fuse_file_info *fi)
{
    read_dir(req, ino, size, off, fi, false);
}

static void ll_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                           struct fuse_file_info *fi)
{
    read_dir(req, ino, size, off, fi, true);
}

static void ll_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    struct statvfs st;
    int rc = qf_tree_statfs(tree_of(req), &st);
    if (rc != 0)
        reply_error(req, rc);
    else
        fuse_reply_statfs(req, &st);
}

/* size 0: only the size is asked for. Takes the buffer over. */
static void reply_xattr(fuse_req_t req, int rc, struct qf_buf *value, size_t size)
{
    if (rc != 0)
        reply_error(req, rc);
    else if (size == 0)
        fuse_reply_xattr(req, value->size);
    else if (size < value->size)
        reply_error(req, -ERANGE);
    else
        fuse_reply_buf(req, value->data, value->size);
    qf_buf_fini(value);
}

static void ll_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct qf_buf value = {0};
    int rc = qf_xattr_get(tree_of(req), ino, name, &value);
    reply_xattr(req, rc, &value, size);
}

static void ll_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct qf_buf list = {0};
    int rc = qf_xattr_list(tree_of(req), ino, &list);
    reply_xattr(req, rc, &list, size);
}

/* The mount is read-only: the kernel asks for neither, but an NFS server's might. */
static void ll_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name,
                        const char *value, size_t size, int flags)
{
    (void)ino, (void)name, (void)value, (void)size, (void)flags;
    reply_error(req, -EROFS);
}

static void ll_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    (void)ino, (void)name;
    reply_error(req, -EROFS);
}

const struct fuse_lowlevel_ops *qf_fuse_ops(void)
{
    static const struct fuse_lowlevel_ops ops = {
        .init = ll_init,
        .lookup = ll_lookup,
        .forget = ll_forget,
        .forget_multi = ll_forget_multi,
        .getattr = ll_getattr,
        .open = ll_open,
        .release = ll_release,
        .read = ll_read,
        .opendir = ll_opendir,
        .releasedir = ll_releasedir,
        .readdir = ll_readdir,
        .readdirplus = ll_readdirplus,
        .statfs = ll_statfs,
        .getxattr = ll_getxattr,
        .listxattr = ll_listxattr,
        .setxattr = ll_setxattr,
        .removexattr = ll_removexattr,
    };
    return &ops;
}

/* ---- what libfuse does not know ---- */

static ssize_t read_request(int fd, void *buf, size_t size, void *userdata)
{
    const struct qf_fuse_context *context = userdata;
    qf_metrics *metrics = qf_tree_metrics(context->tree);
    qf_metrics_waiting(metrics, 1);
    ssize_t n =
        context->read != NULL ? context->read(fd, buf, size) : read(fd, buf, size);
    qf_metrics_waiting(metrics, -1);
    bool offered;
    if (n > 0)
        qf_metrics_begin(metrics, qf_wire_opcode(buf, (size_t)n), qf_metrics_now_ns(),
                         &request);
    if (n > 0 && qf_wire_is_init(buf, (size_t)n, &offered)) {
        next_reply.init = offered;
        if (!offered && context->passthrough != NULL)
            qf_passthrough_off(context->passthrough,
                               "the kernel has none: Linux 6.9 is the first");
    }
    return n;
}

static ssize_t write_reply(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct qf_fuse_context *context = userdata;
    struct qf_wire_reply patched;
    int error = qf_wire_reply_error(iov, count);
    bool init = next_reply.init && context->passthrough != NULL &&
                qf_wire_patch_init(iov, count, &patched);
    next_reply.init = false;
    if (init || (next_reply.backing != 0 &&
                 qf_wire_patch_open(iov, count, next_reply.backing, &patched)))
        iov = patched.iov;
    if (init)
        qf_passthrough_ask(context->passthrough);
    ssize_t n = context->writev != NULL ? context->writev(fd, iov, count)
                                        : writev(fd, iov, count);
    if (init && n > 0) /* the kernel has read it when writev returns */
        qf_passthrough_start(context->passthrough, &context->device);
    else if (init)
        qf_passthrough_off(context->passthrough, "the kernel took no answer");
    qf_metrics_end(qf_tree_metrics(context->tree), &request, error,
                   qf_metrics_now_ns());
    return n;
}

const struct fuse_custom_io *qf_fuse_io(void)
{
    static const struct fuse_custom_io io = {.read = read_request,
                                             .writev = write_reply};
    return &io;
}
