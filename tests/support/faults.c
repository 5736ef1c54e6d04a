/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic linker takes a program's own definition of a symbol before that of libc,
 * also for the calls that other libraries make. Memory goes to glibc under its second
 * names, because dlsym allocates. */
#include "support/faults.h"

#ifndef FAULTS_MISSING

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *p);

static struct faults plan;
static _Atomic unsigned armed; /* plan.calls */
static _Atomic long count;
static _Atomic long live;

void faults_arm(const struct faults *faults)
{
    plan = *faults;
    atomic_store(&count, 0);
    atomic_store(&armed, faults->calls);
}

long faults_disarm(void)
{
    atomic_store(&armed, 0);
    return atomic_load(&count);
}

long faults_live_blocks(void)
{
    return atomic_load(&live);
}

static bool is_hit(unsigned call)
{
    if ((atomic_load(&armed) & call) == 0)
        return false;
    long n = atomic_fetch_add(&count, 1) + 1;
    return plan.at != 0 && (n == plan.at || (plan.onwards && n > plan.at));
}

/* Whether the call fails, with errno set. */
static bool fails(unsigned call)
{
    if (!is_hit(call))
        return false;
    errno = plan.error;
    return true;
}

/* libc's function of that name. */
static void find_real(void *fn, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    memcpy(fn, &found, sizeof found);
}

/* ---- memory ---- */

#ifndef FAULTS_NO_ALLOC

static void *counted(void *p)
{
    if (p != NULL)
        atomic_fetch_add(&live, 1);
    return p;
}

void *malloc(size_t size)
{
    return fails(FAULT_ALLOC) ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
    return fails(FAULT_ALLOC) ? NULL : counted(__libc_calloc(n, size));
}

void *realloc(void *old, size_t size)
{
    if (fails(FAULT_ALLOC))
        return NULL;
    void *p = __libc_realloc(old, size);
    return old == NULL ? counted(p) : p;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails(FAULT_ALLOC) ? NULL : counted(__libc_memalign(alignment, size));
}

void *memalign(size_t alignment, size_t size);
void *memalign(size_t alignment, size_t size)
{
    return aligned_alloc(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    void *p = aligned_alloc(alignment, size);
    if (p == NULL)
        return ENOMEM;
    *out = p;
    return 0;
}

void free(void *p)
{
    if (p != NULL)
        atomic_fetch_sub(&live, 1);
    __libc_free(p);
}

#endif

/* ---- files ---- */

int open(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...);
    va_list args;
    va_start(args, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (fails(FAULT_OPEN))
        return -1;
    find_real(&real, "open");
    return real(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    int (*real)(int, const char *, int, ...);
    va_list args;
    va_start(args, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (fails(FAULT_OPEN))
        return -1;
    find_real(&real, "openat");
    return real(dir, path, flags, mode);
}

long syscall(long number, ...)
{
    long (*real)(long, ...);
    long a[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_openat2 && fails(FAULT_OPEN))
        return -1;
    find_real(&real, "syscall");
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int fstat(int fd, struct stat *st)
{
    int (*real)(int, struct stat *);
    if (fails(FAULT_STAT))
        return -1;
    find_real(&real, "fstat");
    return real(fd, st);
}

int fstatat(int dir, const char *path, struct stat *st, int flags)
{
    int (*real)(int, const char *, struct stat *, int);
    if (fails(FAULT_STAT))
        return -1;
    find_real(&real, "fstatat");
    return real(dir, path, st, flags);
}

int fstatfs(int fd, struct statfs *st)
{
    int (*real)(int, struct statfs *);
    if (fails(FAULT_STAT))
        return -1;
    find_real(&real, "fstatfs");
    return real(fd, st);
}

ssize_t pread(int fd, void *buf, size_t size, off_t off)
{
    ssize_t (*real)(int, void *, size_t, off_t);
    if (is_hit(FAULT_READ)) {
        errno = plan.error;
        if (errno != 0)
            return -1;
        size -= size / 2;
    }
    find_real(&real, "pread");
    return real(fd, buf, size, off);
}

ssize_t readlinkat(int dir, const char *restrict path, char *restrict buf, size_t size)
{
    ssize_t (*real)(int, const char *restrict, char *restrict, size_t);
    if (fails(FAULT_LINK))
        return -1;
    find_real(&real, "readlinkat");
    return real(dir, path, buf, size);
}

DIR *fdopendir(int fd)
{
    DIR *(*real)(int);
    if (fails(FAULT_LIST))
        return NULL;
    find_real(&real, "fdopendir");
    return real(fd);
}

struct dirent *readdir(DIR *dir)
{
    struct dirent *(*real)(DIR *);
    if (fails(FAULT_LIST))
        return NULL;
    find_real(&real, "readdir");
    return real(dir);
}

ssize_t pwrite(int fd, const void *buf, size_t size, off_t off)
{
    ssize_t (*real)(int, const void *, size_t, off_t);
    if (is_hit(FAULT_WRITE)) {
        errno = plan.error;
        if (errno != 0)
            return -1;
        size /= 2;
    }
    find_real(&real, "pwrite");
    return real(fd, buf, size, off);
}

ssize_t writev(int fd, const struct iovec *pieces, int n)
{
    ssize_t (*real)(int, const struct iovec *, int);
    if (is_hit(FAULT_WRITE)) {
        errno = plan.error;
        if (errno != 0)
            return -1;
        n -= n / 2;
    }
    find_real(&real, "writev");
    return real(fd, pieces, n);
}

static int sync_with(const char *name, int fd)
{
    int (*real)(int);
    if (fails(FAULT_SYNC))
        return -1;
    find_real(&real, name);
    return real(fd);
}

int fsync(int fd)
{
    return sync_with("fsync", fd);
}

int fdatasync(int fd)
{
    return sync_with("fdatasync", fd);
}

int msync(void *p, size_t size, int flags)
{
    int (*real)(void *, size_t, int);
    if (fails(FAULT_SYNC))
        return -1;
    find_real(&real, "msync");
    return real(p, size, flags);
}

int ftruncate(int fd, off_t size)
{
    int (*real)(int, off_t);
    if (fails(FAULT_SIZE))
        return -1;
    find_real(&real, "ftruncate");
    return real(fd, size);
}

int posix_fallocate(int fd, off_t off, off_t size)
{
    int (*real)(int, off_t, off_t);
    if (fails(FAULT_SIZE))
        return errno;
    find_real(&real, "posix_fallocate");
    return real(fd, off, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t off)
{
    void *(*real)(void *, size_t, int, int, int, off_t);
    if (fails(FAULT_MAP))
        return MAP_FAILED;
    find_real(&real, "mmap");
    return real(at, size, protection, flags, fd, off);
}

int fcntl(int fd, int command, ...)
{
    int (*real)(int, int, ...);
    va_list args;
    va_start(args, command);
    void *arg = va_arg(args, void *);
    va_end(args);
    if (fails(FAULT_LOCK))
        return -1;
    find_real(&real, "fcntl");
    return real(fd, command, arg);
}

/* ---- time ---- */

int clock_gettime(clockid_t clock, struct timespec *out)
{
    int (*real)(clockid_t, struct timespec *);
    bool jumps = is_hit(FAULT_CLOCK);
    find_real(&real, "clock_gettime");
    int rc = real(clock, out);
    if (rc == 0 && jumps)
        out->tv_sec += plan.jump_s;
    return rc;
}

#endif
