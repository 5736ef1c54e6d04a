/* SPDX-License-Identifier: Apache-2.0 */
/* A window is named by the version of its file (identity, size, times) and its number,
 * so pages pinned for one version are never used for another: a file that is truncated
 * and written anew gets new pages, while a registration keeps the old ones.
 *
 *    FREE ----> SEEN ----> BUSY (one thread maps and registers) ----> READY
 *                 ^                        |                            |
 *                 +-- evicted -- BUSY <----)----------------------------+
 *                                          +--> REFUSED (until cleared)
 *
 * The table is small and searched from end to end: a window is megabytes of work. */
#include "cuda/windows.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "cuda/device.h"

/* Places of a window that are asked whether they are in the page cache. */
#define PROBES 4
/* Windows registered at a time, at least and at most. */
#define LIMIT_MIN 8
#define LIMIT_MAX 4096
/* Windows that are closed together to make room: taking one back waits for the device,
 * taking back more after it hardly costs more. */
#define EVICT 16

enum state { FREE, SEEN, BUSY, READY, REFUSED };

struct qf_cuda_window {
    enum state state;
    struct qf_cuda_file file;
    uint64_t number;
    uint64_t wanted;
    uint64_t used; /* clock of the last use */
    uint32_t refs;
    void *map;
    size_t size;
};

bool qf_cuda_file_of(int fd, struct qf_cuda_file *out)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
        return false;
    *out = (struct qf_cuda_file){
        .fd = fd,
        .dev = st.st_dev,
        .ino = st.st_ino,
        .size = (uint64_t)st.st_size,
        .mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
        .ctime_ns = (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec,
    };
    return true;
}

static bool same_file(const struct qf_cuda_file *a, const struct qf_cuda_file *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

int qf_cuda_windows_init(struct qf_cuda_windows *windows, uint64_t pinned_limit,
                         struct qf_cuda_faults *faults, struct qf_cuda_turns *turns)
{
    *windows = (struct qf_cuda_windows){.faults = faults, .turns = turns};
    uint64_t limit = pinned_limit / QF_CUDA_WINDOW_SIZE;
    windows->limit = limit < LIMIT_MIN   ? LIMIT_MIN
                     : limit > LIMIT_MAX ? LIMIT_MAX
                                         : (size_t)limit;
    windows->capacity = windows->limit + QF_CUDA_WINDOWS_SEEN;
    windows->entries = calloc(windows->capacity, sizeof *windows->entries);
    if (windows->entries == NULL)
        return -ENOMEM;
    pthread_mutex_init(&windows->lock, NULL);
    pthread_cond_init(&windows->changed, NULL);
    return 0;
}

void qf_cuda_windows_fini(struct qf_cuda_windows *windows)
{
    assert(windows->registered == 0);
    free(windows->entries);
    pthread_cond_destroy(&windows->changed);
    pthread_mutex_destroy(&windows->lock);
}

/* ---- mapping; without the lock ---- */

/* Reading ahead here is faster than page faults are, one by one. */
static void warm_up(int fd, uint64_t off, size_t size)
{
    char byte;
    struct iovec iov = {&byte, 1};
    for (size_t i = 0; i < PROBES; i++) {
        off_t at = (off_t)(off + size / PROBES * i);
        if (preadv2(fd, &iov, 1, at, RWF_NOWAIT) == 1)
            continue;
        (void)posix_fadvise(fd, (off_t)off, (off_t)(2 * QF_CUDA_WINDOW_SIZE),
                            POSIX_FADV_WILLNEED);
        return;
    }
}

/* Most of what registering costs is page faults, which the driver would take one thread
 * at a time. This touches no byte: a file that has shrunk makes it fail, and
 * registering after it, and nothing else. */
static void populate(void *map, size_t size)
{
#ifdef MADV_POPULATE_READ
    (void)madvise(map, size, MADV_POPULATE_READ);
#else
    (void)map, (void)size;
#endif
}

static bool open_window(struct qf_cuda_windows *windows,
                        const struct qf_cuda_file *file, uint64_t off, size_t size,
                        void **map)
{
    warm_up(file->fd, off, size);
    void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, file->fd, (off_t)off);
    if (p == MAP_FAILED)
        return false;
    populate(p, size);
    int rc = -EINVAL;
    if (!qf_cuda_fault(windows->faults, QF_CUDA_FAULT_REGISTER)) {
        qf_cuda_register_turn(windows->turns);
        rc = qf_cuda_register(p, size, true);
        qf_cuda_register_done(windows->turns);
    }
    if (rc != 0) {
        munmap(p, size);
        return false;
    }
    *map = p;
    return true;
}

static void close_window(struct qf_cuda_windows *windows, void *map, size_t size)
{
    if (map == NULL)
        return;
    qf_cuda_register_turn(windows->turns);
    qf_cuda_unregister(map);
    qf_cuda_register_done(windows->turns);
    munmap(map, size);
}

/* ---- the table; all of this with the lock held ---- */

static struct qf_cuda_window *find(const struct qf_cuda_windows *windows,
                                   const struct qf_cuda_file *file, uint64_t number)
{
    for (size_t i = 0; i < windows->capacity; i++) {
        struct qf_cuda_window *w = &windows->entries[i];
        if (w->state != FREE && w->number == number && same_file(&w->file, file))
            return w;
    }
    return NULL;
}

/* The entry of this state that nobody has used for longest, or NULL. */
static struct qf_cuda_window *oldest(const struct qf_cuda_windows *windows,
                                     enum state state)
{
    struct qf_cuda_window *found = NULL;
    for (size_t i = 0; i < windows->capacity; i++) {
        struct qf_cuda_window *w = &windows->entries[i];
        if (w->state == state && w->refs == 0 &&
            (found == NULL || w->used < found->used))
            found = w;
    }
    return found;
}

/* There is always one: fewer are READY or BUSY than are remembered. */
static struct qf_cuda_window *remember(struct qf_cuda_windows *windows,
                                       const struct qf_cuda_file *file, uint64_t number)
{
    struct qf_cuda_window *w = oldest(windows, FREE);
    if (w == NULL)
        w = oldest(windows, SEEN);
    if (w == NULL)
        w = oldest(windows, REFUSED);
    if (w == NULL)
        return NULL;
    *w = (struct qf_cuda_window){.state = SEEN, .file = *file, .number = number};
    return w;
}

/* Makes room for one more registration. victims: what to close first, *count of them.
 */
static bool make_room(struct qf_cuda_windows *windows, struct qf_cuda_window *victims,
                      size_t *count)
{
    *count = 0;
    size_t most = windows->limit / 4 < EVICT ? windows->limit / 4 : EVICT;
    struct qf_cuda_window *w;
    bool full = windows->registered >= windows->limit;
    while (full && *count < most && (w = oldest(windows, READY)) != NULL) {
        victims[(*count)++] = *w;
        *w = (struct qf_cuda_window){0};
    }
    windows->registered -= *count;
    if (windows->registered >= windows->limit)
        return false;
    windows->registered++;
    return true;
}

/* From SEEN to READY or REFUSED, the lock let go in between. */
static void make_ready(struct qf_cuda_windows *windows, struct qf_cuda_window *w,
                       int fd)
{
    struct qf_cuda_window victims[EVICT];
    size_t victim_count;
    if (!make_room(windows, victims, &victim_count))
        return;
    w->state = BUSY;
    struct qf_cuda_file file = w->file;
    file.fd = fd;
    uint64_t off = w->number * QF_CUDA_WINDOW_SIZE;
    uint64_t left = file.size - off;
    size_t size = (size_t)(left < QF_CUDA_WINDOW_SIZE ? left : QF_CUDA_WINDOW_SIZE);
    pthread_mutex_unlock(&windows->lock);
    for (size_t i = 0; i < victim_count; i++)
        close_window(windows, victims[i].map, victims[i].size);
    void *map = NULL;
    bool ok = open_window(windows, &file, off, size, &map);
    pthread_mutex_lock(&windows->lock);
    w->state = ok ? READY : REFUSED;
    w->map = map;
    w->size = size;
    if (!ok)
        windows->registered--;
    pthread_cond_broadcast(&windows->changed);
}

/* ---- contract ---- */

const void *qf_cuda_windows_get(struct qf_cuda_windows *windows,
                                const struct qf_cuda_file *file, uint64_t off,
                                uint64_t wanted, struct qf_cuda_window **held)
{
    *held = NULL;
    if (off >= file->size)
        return NULL;
    const char *data = NULL;
    uint64_t number = off / QF_CUDA_WINDOW_SIZE;
    pthread_mutex_lock(&windows->lock);
    struct qf_cuda_window *w = find(windows, file, number);
    while (w != NULL && w->state == BUSY) {
        pthread_cond_wait(&windows->changed, &windows->lock);
        w = find(windows, file, number);
    }
    if (w == NULL)
        w = remember(windows, file, number);
    if (w != NULL) {
        w->used = ++windows->clock;
        w->wanted += wanted;
        if (w->state == SEEN && w->wanted >= QF_CUDA_WINDOW_WANTED)
            make_ready(windows, w, file->fd);
        if (w->state == READY) {
            w->refs++;
            *held = w;
            data = (const char *)w->map + off % QF_CUDA_WINDOW_SIZE;
        }
    }
    pthread_mutex_unlock(&windows->lock);
    return data;
}

void qf_cuda_windows_put(struct qf_cuda_windows *windows, struct qf_cuda_window *held)
{
    pthread_mutex_lock(&windows->lock);
    assert(held->refs > 0 && held->state == READY);
    held->refs--;
    pthread_mutex_unlock(&windows->lock);
}

bool qf_cuda_windows_any(struct qf_cuda_windows *windows)
{
    pthread_mutex_lock(&windows->lock);
    bool any = windows->registered != 0;
    pthread_mutex_unlock(&windows->lock);
    return any;
}

void qf_cuda_windows_clear(struct qf_cuda_windows *windows)
{
    pthread_mutex_lock(&windows->lock);
    for (size_t i = 0; i < windows->capacity; i++) {
        struct qf_cuda_window *w = &windows->entries[i];
        assert(w->refs == 0 && w->state != BUSY);
        if (w->state == READY)
            close_window(windows, w->map, w->size);
        *w = (struct qf_cuda_window){0};
    }
    windows->registered = 0;
    pthread_mutex_unlock(&windows->lock);
}
