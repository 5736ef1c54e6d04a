/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a directory through FUSE, and nothing else: what a file server in user
 * space costs at the least when the bytes are there already. The measure for first
 * reads of a view. Answers from mappings of the files by iov, as quantfs does from its
 * cache's map, with the same options.
 *
 *   qf_bench_bare_fuse_dir DIR MNT [READ_AHEAD_KB]
 *
 * Stays in the foreground; a plain directory without subdirectories. */
#define FUSE_USE_VERSION 314
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FILES_MAX 256
#define TTL_S     3600.0
#define READ_MAX  1048576u

struct file {
    char name[256];
    struct stat st; /* st_ino is ours */
    const char *data;
};

static struct file files[FILES_MAX];
static size_t file_count;
static struct stat root;

static struct file *file_of(fuse_ino_t ino)
{
    return ino >= 2 && ino < 2 + file_count ? &files[ino - 2] : NULL;
}

static int load(const char *dir)
{
    DIR *d = opendir(dir);
    if (d == NULL || fstat(dirfd(d), &root) != 0)
        return -1;
    root.st_ino = FUSE_ROOT_ID;
    for (struct dirent *e; (e = readdir(d)) != NULL && file_count < FILES_MAX;) {
        struct file *f = &files[file_count];
        int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &f->st) != 0)
            return -1;
        if (S_ISREG(f->st.st_mode) && strlen(e->d_name) < sizeof f->name) {
            size_t size = (size_t)f->st.st_size;
            f->data = size == 0 ? NULL
                                : mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE,
                                       fd, 0);
            if (f->data == MAP_FAILED)
                return -1;
            strcpy(f->name, e->d_name);
            f->st.st_ino = 2 + file_count++;
        }
        close(fd);
    }
    closedir(d);
    return 0;
}

/* ---- requests ---- */

static void do_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    conn->max_read = READ_MAX;
    conn->max_readahead = READ_MAX;
    conn->max_background = 64;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    for (size_t i = 0; i < file_count; i++) {
        if (strcmp(files[i].name, name) != 0)
            continue;
        struct fuse_entry_param e = {.ino = 2 + i,
                                     .attr = files[i].st,
                                     .attr_timeout = TTL_S,
                                     .entry_timeout = TTL_S};
        fuse_reply_entry(req, &e);
        return;
    }
    fuse_reply_err(req, ENOENT);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    const struct file *f = file_of(ino);
    fuse_reply_attr(req, f != NULL ? &f->st : &root, TTL_S);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (file_of(ino) == NULL) {
        fuse_reply_err(req, EISDIR);
        return;
    }
    fi->keep_cache = 1;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)fi;
    const struct file *f = file_of(ino);
    off_t left = f->st.st_size > off ? f->st.st_size - off : 0;
    struct iovec iov = {(void *)(f->data + off),
                        (off_t)size < left ? size : (size_t)left};
    fuse_reply_iov(req, &iov, 1);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                       struct fuse_file_info *fi)
{
    (void)fi;
    (void)ino;
    char *buf = malloc(size);
    size_t used = 0;
    for (size_t i = (size_t)off; buf != NULL && i < file_count; i++) {
        size_t n = fuse_add_direntry(req, buf + used, size - used, files[i].name,
                                     &files[i].st, (off_t)i + 1);
        if (n > size - used)
            break;
        used += n;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static const struct fuse_lowlevel_ops ops = {.init = do_init,
                                             .lookup = do_lookup,
                                             .getattr = do_getattr,
                                             .open = do_open,
                                             .read = do_read,
                                             .readdir = do_readdir};

static void raise_read_ahead(const char *mountpoint, const char *kb)
{
    struct stat st;
    char path[128];
    if (stat(mountpoint, &st) != 0)
        return;
    snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major(st.st_dev),
             minor(st.st_dev));
    FILE *f = fopen(path, "w");
    bool ok = f != NULL && fputs(kb, f) >= 0;
    if (f != NULL)
        ok = fclose(f) == 0 && ok;
    if (!ok)
        fprintf(stderr, "%s: read-ahead stays as it is\n", path);
}

static int serve(const char *mountpoint, const char *read_ahead_kb)
{
    char words[] = "ro,default_permissions,subtype=bare,fsname=bare,max_read=1048576";
    char *argv[] = {(char *)"bare", (char *)"-o", words, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    struct fuse_session *session = fuse_session_new(&args, &ops, sizeof ops, NULL);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    int rc = 1;
    if (session == NULL || config == NULL ||
        fuse_session_mount(session, mountpoint) != 0)
        goto out;
    fuse_set_signal_handlers(session);
    /* The first stat is answered by the loop below: from another process. */
    if (fork() == 0) {
        raise_read_ahead(mountpoint, read_ahead_kb);
        _exit(0);
    }
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, 32);
    fuse_loop_cfg_set_idle_threads(config, 32);
    rc = fuse_session_loop_mt(session, config) < 0;
    fuse_remove_signal_handlers(session);
    fuse_session_unmount(session);
out:
    if (config != NULL)
        fuse_loop_cfg_destroy(config);
    if (session != NULL)
        fuse_session_destroy(session);
    fuse_opt_free_args(&args);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: qf_bench_bare_fuse_dir DIR MNT [READ_AHEAD_KB]\n");
        return 2;
    }
    if (load(argv[1]) != 0) {
        perror(argv[1]);
        return 1;
    }
    return serve(argv[2], argc > 3 ? argv[3] : "4096");
}
