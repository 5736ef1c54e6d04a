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
/* All requests that have no data to be written: a name or two behind a header. */
#define REQUEST_SIZE_TYPICAL 8192u

/* The request that this thread is at. */
static _Thread_local struct qf_metrics_request request = {.kind = QF_METRICS_NONE};
static _Thread_local uint64_t request_unique;

/* What this thread's next reply is to become. */
static _Thread_local struct {
    bool init;        /* it answers INIT … */
    bool passthrough; /* … of a kernel that offers it, and it is wanted */
    bool journal;     /* it answers INIT, and goes into the journal */
    bool replay;      /* it answers INIT, and the kernel does not want to hear it */
    int backing;      /* not 0: it answers OPEN, with this backing file */
} next_reply;

static struct qf_fuse_context *context_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static qf_tree *tree_of(fuse_req_t req)
{
    return context_of(req)->tree;
}

static qf_handles *handles_of(fuse_req_t req)
{
    return context_of(req)->handles;
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
static int count_open(fuse_req_t req, const qf_file *file, struct qf_handle_info *info)
{
    qf_passthrough *passthrough = context_of(req)->passthrough;
    int fd;
    if (passthrough == NULL || !qf_file_sealed(file, &fd))
        return 0;
    int backing = qf_passthrough_open(passthrough, info->node, info->generation, fd);
    if (backing < 0)
        return backing;
    info->is_shard = 1;
    info->backing = backing;
    return 0;
}

static void uncount(const struct qf_fuse_context *context,
                    const struct qf_handle_info *info)
{
    if (context->passthrough != NULL && info->is_shard)
        qf_passthrough_release(context->passthrough, info->node, info->generation);
}

static void release(fuse_req_t req, uint64_t fh)
{
    struct qf_handle_info info;
    if (qf_handles_release(handles_of(req), fh, &info))
        uncount(context_of(req), &info);
}

static struct qf_handle_info new_info(fuse_ino_t ino, uint64_t generation)
{
    return (struct qf_handle_info){.node = ino,
                                   .generation = generation,
                                   .unique = request_unique};
}

/* Counts the open and gives it a number. Takes the file over. */
static int add_file(fuse_req_t req, qf_file *file, struct qf_handle_info *info,
                    uint64_t *fh)
{
    int rc = count_open(req, file, info);
    if (rc != 0) {
        qf_file_close(file);
        return rc;
    }
    rc = qf_handles_add_file(handles_of(req), info, file, fh);
    if (rc != 0)
        uncount(context_of(req), info);
    return rc;
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
    struct qf_handle_info info = new_info(ino, qf_file_generation(file));
    fi->direct_io = qf_file_is_dynamic(file);
    rc = add_file(req, file, &info, &fi->fh);
    if (rc != 0) {
        reply_error(req, rc);
        return;
    }
    fi->keep_cache = !fi->direct_io && info.backing == 0;
    next_reply.backing = info.backing;
    rc = fuse_reply_open(req, fi);
    next_reply.backing = 0;
    if (rc != 0)
        release(req, fi->fh);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    release(req, fi->fh);
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
    qf_file *file = NULL;
    int rc = off < 0 ? -EINVAL : qf_handles_file(handles_of(req), fi->fh, &file);
    if (rc == 0)
        rc = qf_file_read(file, (uint64_t)off, size, &read);
    if (rc != 0) {
        log_read_error(req, ino, rc);
        reply_error(req, rc);
    } else {
        fuse_reply_iov(req, read.pieces, (int)read.piece_count);
        qf_file_read_done(&read);
    }
    qf_file_close(file);
}

static void ll_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    qf_dir *dir;
    int rc = qf_tree_opendir(tree_of(req), ino, &dir);
    if (rc != 0) {
        reply_error(req, rc);
        return;
    }
    struct qf_handle_info info = new_info(ino, qf_dir_generation(dir));
    rc = qf_handles_add_dir(handles_of(req), &info, dir, &fi->fh);
    if (rc != 0)
        reply_error(req, rc);
    else if (fuse_reply_open(req, fi) != 0)
        release(req, fi->fh);
}

static void ll_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    release(req, fi->fh);
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
    qf_dir *dir;
    int rc = qf_handles_dir(handles_of(req), fi->fh, &dir);
    char *reply = rc == 0 ? malloc(size) : NULL;
    if (reply == NULL) {
        reply_error(req, rc != 0 ? rc : -ENOMEM);
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
    qf_dir_read_done(dir);
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

/* Whether the kernel is to be asked for passthrough. */
static bool offered(const struct qf_fuse_context *context, const void *request_data,
                    size_t size, const struct qf_wire_offer *offer)
{
    bool wanted =
        context->passthrough != NULL && qf_passthrough_wanted(context->passthrough);
    if (wanted && !offer->passthrough)
        qf_passthrough_off(context->passthrough,
                           "the kernel has none: Linux 6.9 is the first");
    if (context->journal == NULL)
        return wanted && offer->passthrough;
    qf_journal_set(context->journal, QF_JOURNAL_INIT_REQUEST, 0, request_data, size);
    if (!offer->resend) {
        qf_log(QF_LOG_WARN,
               "this mount will not outlive its daemon: the kernel sends no "
               "request again (Linux 6.9 is the first)");
        qf_journal_end(context->journal);
    }
    return wanted && offer->passthrough;
}

/* An open that the kernel sends again: what a daemon before us has opened for it, the
 * kernel never heard of. */
static void drop_unheard(const struct qf_fuse_context *context)
{
    struct qf_handle_info info;
    if (qf_handles_drop(context->handles, request_unique, &info))
        uncount(context, &info);
}

static ssize_t read_request(int fd, void *buf, size_t size, void *userdata)
{
    const struct qf_fuse_context *context = userdata;
    qf_metrics *metrics = qf_tree_metrics(context->tree);
    /* The kernel copies a request to pages that are there, also when we are killed
     * meanwhile; otherwise it would fail the request. */
    for (size_t at = 0; at < REQUEST_SIZE_TYPICAL && at < size; at += 4096)
        ((volatile char *)buf)[at] = 0;
    qf_metrics_waiting(metrics, 1);
    ssize_t n =
        context->read != NULL ? context->read(fd, buf, size) : read(fd, buf, size);
    qf_metrics_waiting(metrics, -1);
    if (n <= 0)
        return n;
    struct qf_wire_offer offer;
    bool again;
    uint32_t opcode = qf_wire_opcode(buf, (size_t)n);
    qf_metrics_begin(metrics, opcode, qf_metrics_now_ns(), &request);
    request_unique = qf_wire_unique(buf, (size_t)n, &again);
    if (again && (opcode == QF_WIRE_OPEN || opcode == QF_WIRE_OPENDIR))
        drop_unheard(context);
    if (qf_wire_is_init(buf, (size_t)n, &offer)) {
        next_reply.init = true;
        next_reply.passthrough = offered(context, buf, (size_t)n, &offer);
        next_reply.journal = context->journal != NULL;
    }
    return n;
}

/* What is negotiated, before the kernel hears it. */
static void write_down_init(const struct qf_fuse_context *context,
                            const struct iovec *iov, int count)
{
    struct qf_buf reply = {0};
    for (int i = 0; i < count; i++)
        qf_buf_append(&reply, iov[i].iov_base, iov[i].iov_len);
    if (reply.failed)
        qf_journal_end(context->journal);
    else
        qf_journal_set(context->journal, QF_JOURNAL_INIT_REPLY, 0, reply.data,
                       reply.size);
    qf_buf_fini(&reply);
}

static ssize_t replayed(struct qf_fuse_context *context, const struct iovec *iov,
                        int count, int error)
{
    ssize_t size = 0;
    for (int i = 0; i < count; i++)
        size += (ssize_t)iov[i].iov_len;
    context->replay_error = error;
    return size;
}

static ssize_t write_reply(int fd, struct iovec *iov, int count, void *userdata)
{
    struct qf_fuse_context *context = userdata;
    struct qf_wire_reply patched;
    int error = qf_wire_reply_error(iov, count);
    bool init = next_reply.init;
    bool ask = next_reply.passthrough && qf_wire_patch_init(iov, count, &patched);
    next_reply.init = next_reply.passthrough = false;
    if (next_reply.replay)
        return replayed(context, iov, count, error);
    if (ask || (next_reply.backing != 0 &&
                qf_wire_patch_open(iov, count, next_reply.backing, &patched)))
        iov = patched.iov;
    if (next_reply.journal)
        write_down_init(context, iov, count);
    next_reply.journal = false;
    if (ask)
        qf_passthrough_ask(context->passthrough);
    ssize_t n = context->writev != NULL ? context->writev(fd, iov, count)
                                        : writev(fd, iov, count);
    /* The kernel has read an answer when writev returns. */
    if (ask && n > 0)
        qf_passthrough_start(context->passthrough, &context->device);
    else if (ask)
        qf_passthrough_off(context->passthrough, "the kernel took no answer");
    if (init && n > 0 && error == 0 && context->started != NULL)
        context->started(context->started_arg);
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

/* ---- going on from another daemon ---- */

struct saved {
    void *data; /* owned */
    size_t size;
};

static int copy_saved(void *arg, uint64_t key, const void *data, size_t size)
{
    struct saved *saved = arg;
    (void)key;
    saved->data = malloc(size);
    if (saved->data == NULL)
        return -ENOMEM;
    memcpy(saved->data, data, size);
    saved->size = size;
    return 0;
}

static int load_saved(qf_journal *journal, uint32_t kind, struct saved *out)
{
    int rc = qf_journal_each(journal, kind, copy_saved, out);
    return rc == 0 && out->data == NULL ? -EBADMSG : rc;
}

struct restore {
    qf_passthrough *passthrough;
    int rc;
};

static void restore_open(void *arg, const struct qf_handle_info *info)
{
    struct restore *restore = arg;
    if (restore->passthrough != NULL && info->is_shard && restore->rc == 0)
        restore->rc = qf_passthrough_restore(restore->passthrough, info->node,
                                             info->generation, info->backing);
}

static int restore_opens(struct qf_fuse_context *context)
{
    struct restore restore = {context->passthrough, 0};
    if (context->passthrough != NULL)
        qf_passthrough_resume(context->passthrough);
    int rc = qf_handles_restore(context->handles, restore_open, &restore);
    return rc != 0 ? rc : restore.rc;
}

/* The kernel has negotiated with another daemon, and does not negotiate again: libfuse
 * is shown what it said then, and what libfuse answers is thrown away. */
static int replay_init(struct qf_fuse_context *context, struct fuse_session *session)
{
    struct saved request_saved = {0}, reply = {0};
    int rc = load_saved(context->journal, QF_JOURNAL_INIT_REQUEST, &request_saved);
    if (rc == 0)
        rc = load_saved(context->journal, QF_JOURNAL_INIT_REPLY, &reply);
    if (rc == 0) {
        const struct fuse_buf buf = {.mem = request_saved.data,
                                     .size = request_saved.size};
        next_reply.replay = true;
        context->replay_error = EIO; /* until libfuse has answered */
        fuse_session_process_buf(session, &buf);
        next_reply.replay = false;
        rc = -context->replay_error;
    }
    if (rc == 0 && context->passthrough != NULL) {
        if (qf_wire_asks_passthrough(reply.data, reply.size))
            qf_passthrough_start(context->passthrough, &context->device);
        else
            qf_passthrough_off(context->passthrough,
                               "the mount was begun without; it takes a new one");
    }
    free(request_saved.data);
    free(reply.data);
    return rc;
}

int qf_fuse_resume(struct qf_fuse_context *context, struct fuse_session *session)
{
    int rc = qf_tree_keep(context->tree, context->journal, true);
    if (rc == 0)
        rc = restore_opens(context);
    return rc == 0 ? replay_init(context, session) : rc;
}

int qf_fuse_resend(int fd)
{
    unsigned char message[QF_WIRE_NOTIFY_SIZE];
    qf_wire_resend(message);
    return write(fd, message, sizeof message) == (ssize_t)sizeof message ? 0 : -errno;
}
