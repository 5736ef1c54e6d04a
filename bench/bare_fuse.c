/* SPDX-License-Identifier: Apache-2.0 */
/* What FUSE itself costs: a server of one file whose bytes lie in memory, with the
 * kernel settings of quantfs (size of requests, read-ahead, background requests, a
 * descriptor a thread, kept caches, no splice) and nothing else. No server that answers
 * reads can be faster than this one.
 *
 *   qf_bench_bare FILE MNT      shows FILE as MNT/file, in the foreground */
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define READ_SIZE_MAX  (1u << 20)
#define MAX_BACKGROUND 64
#define READ_AHEAD_KB  "4096"
#define THREADS_MIN    8
#define HUGE_PAGE      ((size_t)2 << 20)
#define FILE_INO       2
#define TTL_S          3600.0

static char *data;
static size_t data_size;

static void fill_stat(fuse_ino_t ino, struct stat *st)
{
    *st = (struct stat){.st_ino = ino, .st_nlink = 1};
    st->st_mode = ino == FILE_INO ? S_IFREG | 0444 : S_IFDIR | 0555;
    st->st_size = ino == FILE_INO ? (off_t)data_size : 0;
}

static void bare_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->want |= conn->capable & FUSE_CAP_ASYNC_READ;
    conn->want &= ~(unsigned)(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ |
                              FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    conn->max_read = READ_SIZE_MAX;
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
}

static void bare_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {.ino = FILE_INO,
                                 .generation = 1,
                                 .attr_timeout = TTL_S,
                                 .entry_timeout = TTL_S};
    if (parent != FUSE_ROOT_ID || strcmp(name, "file") != 0) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    fill_stat(FILE_INO, &e.attr);
    fuse_reply_entry(req, &e);
}

static void bare_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st;
    fill_stat(ino, &st);
    fuse_reply_attr(req, &st, TTL_S);
}

static void bare_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (ino != FILE_INO) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    fi->keep_cache = 1;
    fuse_reply_open(req, fi);
}

static void bare_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    size_t at = (size_t)off < data_size ? (size_t)off : data_size;
    struct iovec piece = {data + at, size < data_size - at ? size : data_size - at};
    fuse_reply_iov(req, &piece, 1);
}

static const struct fuse_lowlevel_ops ops = {
    .init = bare_init,
    .lookup = bare_lookup,
    .getattr = bare_getattr,
    .open = bare_open,
    .read = bare_read,
};

/* The file's bytes on huge pages where there are any. */
static int load(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        return -1;
    data_size = (size_t)st.st_size;
    size_t room = (data_size / HUGE_PAGE + 1) * HUGE_PAGE;
    data = aligned_alloc(HUGE_PAGE, room);
    if (data == NULL)
        return -1;
    madvise(data, room, MADV_HUGEPAGE);
    for (size_t at = 0; at < data_size;) {
        ssize_t n = read(fd, data + at, data_size - at);
        if (n <= 0)
            return -1;
        at += (size_t)n;
    }
    close(fd);
    return 0;
}

/* As root only, like quantfs. */
static void raise_read_ahead(const char *mountpoint)
{
    struct stat st;
    char path[128];
    if (stat(mountpoint, &st) != 0)
        return;
    snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major(st.st_dev),
             minor(st.st_dev));
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, READ_AHEAD_KB, strlen(READ_AHEAD_KB)) < 0)
        perror(path);
    close(fd);
}

/* The read-ahead is set from beside the loop: stat asks this server. */
static int serve(struct fuse_session *session, const char *mountpoint)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned threads = 2 * (cpus > 0 ? (unsigned)cpus : 1u);
    threads = threads < THREADS_MIN ? THREADS_MIN : threads;
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL)
        return 1;
    pid_t child = fork();
    if (child == 0) {
        raise_read_ahead(mountpoint);
        _exit(0);
    }
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, threads);
    fuse_loop_cfg_set_idle_threads(config, threads);
    int rc = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    return rc < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: qf_bench_bare FILE MNT\n");
        return 2;
    }
    if (load(argv[1]) != 0) {
        perror(argv[1]);
        return 1;
    }
    char words[128];
    snprintf(words, sizeof words,
             "ro,default_permissions,subtype=quantfs-bare,fsname=bare,max_read=%u",
             READ_SIZE_MAX);
    char *own[] = {argv[0], (char *)"-o", words, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, own);
    struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (session == NULL || fuse_session_mount(session, argv[2]) != 0)
        return 1;
    fuse_set_signal_handlers(session);
    int rc = serve(session, argv[2]);
    fuse_remove_signal_handlers(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return rc;
}
