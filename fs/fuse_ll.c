/* SPDX-License-Identifier: Apache-2.0 */
/* Exactly one reply on every path, and the one place where our errors become the
 * kernel's. Contents never change under a (node id, generation) pair, so pages are kept
 * across opens (FOPEN_KEEP_CACHE) and names may be trusted for long: an open that finds
 * other contents answers ESTALE, upon which the kernel looks the name up again. */
#define FUSE_USE_VERSION 314
#include "fs/fuse_ll.h"

#include <dirent.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "fs/file.h"

#define MAX_BACKGROUND 64

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
    fi->fh = (uint64_t)(uintptr_t)file;
    fi->direct_io = qf_file_is_dynamic(file);
    fi->keep_cache = !fi->direct_io;
    if (fuse_reply_open(req, fi) != 0)
        qf_file_close(file);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    qf_file_close((qf_file *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)ino;
    struct qf_file_read read;
    int rc = off < 0 ? -EINVAL
                     : qf_file_read((qf_file *)(uintptr_t)fi->fh, (uint64_t)off, size,
                                    &read);
    if (rc != 0) {
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
    };
    return &ops;
}
