/* SPDX-License-Identifier: Apache-2.0 */
/* What FUSE itself costs: a server of files whose bytes lie in memory, with the kernel
 * settings of quantfs (size of requests, read-ahead, background requests, a descriptor
 * a thread, kept caches, no splice) and nothing else. No server that answers reads can
 * be faster than this one.
 *
 *   qf_bench_bare PATH MNT     shows the file, or the files right in the directory,
 *                              under their names in MNT; in the foreground */
#define FUSE_USE_VERSION 314
#include <dirent.h>
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
#define FILES_MAX      256
#define FILE_INO       2 /* of the first */
#define TTL_S          3600.0

static struct file {
    char name[256];
    char *data; /* NULL: empty */
    size_t size;
} files[FILES_MAX];
static size_t file_count;

/* ---- what it serves ---- */

/* The file's bytes on huge pages where there are any. */
static int load_bytes(int fd, struct file *file)
{
    size_t room = (file->size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    file->data = room > 0 ? aligned_alloc(HUGE_PAGE, room) : NULL;
    if (room > 0 && file->data == NULL)
        return -1;
    madvise(file->data, room, MADV_HUGEPAGE);
    for (size_t at = 0; at < file->size;) {
        ssize_t n = read(fd, file->data + at, file->size - at);
        if (n <= 0)
            return -1;
        at += (size_t)n;
    }
    return 0;
}

/* Takes the name below dir if it is one of a file. */
static int load_file(int dir, const char *name)
{
    struct stat st;
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    int rc = fd >= 0 ? fstat(fd, &st) : -1;
    if (rc == 0 && S_ISREG(st.st_mode)) {
        struct file *file = &files[file_count];
        const char *slash = strrchr(name, '/');
        const char *last = slash != NULL ? slash + 1 : name;
        errno = EFBIG;
        rc = file_count < FILES_MAX && strlen(last) < sizeof file->name ? 0 : -1;
        if (rc == 0) {
            strcpy(file->name, last);
            file->size = (size_t)st.st_size;
            rc = load_bytes(fd, file);
            file_count++;
        }
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

static int load(const char *path)
{
    DIR *dir = opendir(path);
    if (dir == NULL)
        return errno == ENOTDIR ? load_file(AT_FDCWD, path) : -1;
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(dir)) != NULL;)
        rc = load_file(dirfd(dir), e->d_name);
    closedir(dir);
    return rc;
}

/* ---- requests ---- */

static const struct file *file_of(fuse_ino_t ino)
{
    return ino >= FILE_INO && ino < FILE_INO + file_count ? &files[ino - FILE_INO]
                                                          : NULL;
}

static struct stat stat_of(fuse_ino_t ino)
{
    const struct file *file = file_of(ino);
    struct stat st = {.st_ino = ino, .st_nlink = 1};
    st.st_mode = file != NULL ? S_IFREG | 0444 : S_IFDIR | 0555;
    st.st_size = file != NULL ? (off_t)file->size : 0;
    return st;
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
    size_t i = 0;
    while (i < file_count && strcmp(files[i].name, name) != 0)
        i++;
    if (parent != FUSE_ROOT_ID || i == file_count) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    struct fuse_entry_param e = {.ino = FILE_INO + i,
                                 .generation = 1,
                                 .attr = stat_of(FILE_INO + i),
                                 .attr_timeout = TTL_S,
                                 .entry_timeout = TTL_S};
    fuse_reply_entry(req, &e);
}

static void bare_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st = stat_of(ino);
    fuse_reply_attr(req, &st, TTL_S);
}

static void bare_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (file_of(ino) == NULL) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    fi->keep_cache = 1;
    fuse_reply_open(req, fi);
}

static void bare_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
    (void)fi;
    const struct file *file = file_of(ino);
    size_t at = (size_t)off < file->size ? (size_t)off : file->size;
    size_t left = file->size - at;
    struct iovec piece = {file->data + at, size < left ? size : left};
    fuse_reply_iov(req, &piece, 1);
}

static void bare_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                         struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    char *buf = malloc(size);
    size_t used = 0;
    for (size_t i = (size_t)off; buf != NULL && i < file_count; i++) {
        struct stat st = stat_of(FILE_INO + i);
        size_t n = fuse_add_direntry(req, buf + used, size - used, files[i].name, &st,
                                     (off_t)i + 1);
        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static const struct fuse_lowlevel_ops ops = {
    .init = bare_init,
    .lookup = bare_lookup,
    .getattr = bare_getattr,
    .open = bare_open,
    .read = bare_read,
    .readdir = bare_readdir,
};

/* ---- the mount ---- */

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
        fprintf(stderr, "usage: qf_bench_bare PATH MNT\n");
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
