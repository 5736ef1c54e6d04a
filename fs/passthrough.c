/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel counts an inode's opens by itself, a moment after our reply and a moment
 * before it sends the release; counting from before the reply to the release, we never
 * think an inode free that the kernel has in one of the modes.
 *
 * Opens are counted whether passthrough is on or not: it can go off while files are
 * open. */
#include "fs/passthrough.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

#define BUCKETS       256u
#define WHY_SIZE      160
#define LEFTOVERS_MAX (1 << 16)
#define WHY_NOT_BEGUN "the kernel was not asked"

enum state { STATE_WAITING, STATE_ASKING, STATE_ON, STATE_OFF };

/* An inode that is open. */
struct inode {
    struct inode *next;
    uint64_t node, generation;
    uint64_t opens;
    int backing; /* 0: cached mode */
};

struct qf_passthrough {
    pthread_mutex_t lock;
    pthread_cond_t answered; /* state is no longer ASKING */
    void (*switched)(void *arg, bool on);
    void *arg;
    enum state state;
    char why[WHY_SIZE];
    struct qf_passthrough_device device;
    uint64_t opens;
    bool resumed; /* the kernel may have backing files of another daemon */
    struct inode *buckets[BUCKETS];
};

int qf_passthrough_new(void (*switched)(void *arg, bool on), void *arg,
                       qf_passthrough **out)
{
    qf_passthrough *pt = calloc(1, sizeof *pt);
    if (pt == NULL)
        return -ENOMEM;
    pthread_mutex_init(&pt->lock, NULL);
    pthread_cond_init(&pt->answered, NULL);
    pt->switched = switched;
    pt->arg = arg;
    snprintf(pt->why, sizeof pt->why, "%s", WHY_NOT_BEGUN);
    *out = pt;
    return 0;
}

void qf_passthrough_free(qf_passthrough *pt)
{
    if (pt == NULL)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        while (pt->buckets[i] != NULL) {
            struct inode *inode = pt->buckets[i];
            pt->buckets[i] = inode->next;
            free(inode);
        }
    }
    pthread_cond_destroy(&pt->answered);
    pthread_mutex_destroy(&pt->lock);
    free(pt);
}

/* ---- on and off; with the lock held ---- */

static void turn_off(qf_passthrough *pt, const char *why)
{
    if (pt->state == STATE_OFF)
        return;
    bool was_on = pt->state == STATE_ON;
    pt->state = STATE_OFF;
    snprintf(pt->why, sizeof pt->why, "%s", why);
    pthread_cond_broadcast(&pt->answered);
    if (was_on)
        pt->switched(pt->arg, false);
}

/* What the next file will not do better; all else is told again for each file. */
static const char *lasting_reason(int rc)
{
    switch (rc) {
    case -EPERM:
        return "it takes CAP_SYS_ADMIN";
    case -ELOOP:
        return "the cache lies on a stacked filesystem";
    case -ENOTTY:
    case -EINVAL:
    case -EOPNOTSUPP:
    case -ENOSYS:
        return "the kernel refuses the cache's files";
    default:
        return NULL;
    }
}

/* A backing id, or 0. */
static int open_backing(qf_passthrough *pt, int fd)
{
    int id = pt->device.open(pt->device.arg, fd);
    if (id > 0)
        return id;
    const char *why = lasting_reason(id);
    if (why == NULL) {
        qf_log(QF_LOG_DEBUG, "a sealed shard is read without passthrough: %s",
               strerror(-id));
        return 0;
    }
    qf_log(QF_LOG_INFO, "no passthrough: %s (%s)", why, strerror(-id));
    turn_off(pt, why);
    return 0;
}

static bool backs_something(const qf_passthrough *pt, int id)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (const struct inode *inode = pt->buckets[i]; inode != NULL;
             inode = inode->next)
            if (inode->backing == id)
                return true;
    return false;
}

/* Ids are given out upwards: those below `id` are of daemons before us, and each keeps
 * its file on the disk. */
static void close_leftovers(qf_passthrough *pt, int id)
{
    for (int i = id > LEFTOVERS_MAX ? id - LEFTOVERS_MAX : 1; i < id; i++)
        if (!backs_something(pt, i))
            pt->device.close(pt->device.arg, i);
}

/* A file that any kernel with passthrough takes. */
static void try_device(qf_passthrough *pt)
{
    int fd = memfd_create("quantfs", MFD_CLOEXEC);
    int id = fd >= 0 ? open_backing(pt, fd) : 0;
    if (fd >= 0)
        close(fd);
    if (id == 0) {
        turn_off(pt, "the kernel took no file");
        return;
    }
    pt->device.close(pt->device.arg, id);
    if (pt->resumed)
        close_leftovers(pt, id);
    pt->state = STATE_ON;
    pthread_cond_broadcast(&pt->answered);
    pt->switched(pt->arg, true);
}

static void await_answer(qf_passthrough *pt)
{
    while (pt->state == STATE_ASKING)
        pthread_cond_wait(&pt->answered, &pt->lock);
}

void qf_passthrough_off(qf_passthrough *pt, const char *why)
{
    pthread_mutex_lock(&pt->lock);
    turn_off(pt, why);
    pthread_mutex_unlock(&pt->lock);
}

bool qf_passthrough_wanted(qf_passthrough *pt)
{
    pthread_mutex_lock(&pt->lock);
    bool wanted = pt->state != STATE_OFF;
    pthread_mutex_unlock(&pt->lock);
    return wanted;
}

void qf_passthrough_ask(qf_passthrough *pt)
{
    pthread_mutex_lock(&pt->lock);
    if (pt->state == STATE_WAITING)
        pt->state = STATE_ASKING;
    pthread_mutex_unlock(&pt->lock);
}

void qf_passthrough_start(qf_passthrough *pt,
                          const struct qf_passthrough_device *device)
{
    pthread_mutex_lock(&pt->lock);
    pt->device =
        *device; /* inodes of a daemon before this one may have backing files */
    if (pt->state == STATE_WAITING || pt->state == STATE_ASKING)
        try_device(pt);
    pthread_mutex_unlock(&pt->lock);
}

/* ---- inodes ---- */

static struct inode **find(qf_passthrough *pt, uint64_t node, uint64_t generation)
{
    struct inode **link = &pt->buckets[(node ^ generation) % BUCKETS];
    while (*link != NULL &&
           ((*link)->node != node || (*link)->generation != generation))
        link = &(*link)->next;
    return link;
}

/* The inode, made if it is not there; NULL without memory. With the lock held. */
static struct inode *enter(qf_passthrough *pt, uint64_t node, uint64_t generation,
                           bool *fresh)
{
    struct inode **link = find(pt, node, generation);
    *fresh = *link == NULL;
    if (*fresh) {
        *link = calloc(1, sizeof **link);
        if (*link != NULL) {
            (*link)->node = node;
            (*link)->generation = generation;
        }
    }
    return *link;
}

void qf_passthrough_resume(qf_passthrough *pt)
{
    pthread_mutex_lock(&pt->lock);
    pt->resumed = true;
    pthread_mutex_unlock(&pt->lock);
}

int qf_passthrough_restore(qf_passthrough *pt, uint64_t node, uint64_t generation,
                           int backing)
{
    bool fresh;
    pthread_mutex_lock(&pt->lock);
    struct inode *inode = enter(pt, node, generation, &fresh);
    if (inode != NULL) {
        inode->opens++;
        inode->backing = backing;
    }
    pthread_mutex_unlock(&pt->lock);
    return inode != NULL ? 0 : -ENOMEM;
}

int qf_passthrough_open(qf_passthrough *pt, uint64_t node, uint64_t generation, int fd)
{
    pthread_mutex_lock(&pt->lock);
    await_answer(pt);
    bool fresh;
    struct inode *inode = enter(pt, node, generation, &fresh);
    if (inode == NULL) {
        pthread_mutex_unlock(&pt->lock);
        return -ENOMEM;
    }
    if (fresh && pt->state == STATE_ON && fd >= 0)
        inode->backing = open_backing(pt, fd);
    inode->opens++;
    int backing = inode->backing;
    if (backing != 0)
        pt->opens++;
    pthread_mutex_unlock(&pt->lock);
    return backing;
}

void qf_passthrough_release(qf_passthrough *pt, uint64_t node, uint64_t generation)
{
    pthread_mutex_lock(&pt->lock);
    struct inode **link = find(pt, node, generation);
    struct inode *inode = *link;
    assert(inode != NULL);
    if (--inode->opens == 0) {
        *link = inode->next;
        if (inode->backing != 0)
            pt->device.close(pt->device.arg, inode->backing);
        free(inode);
    }
    pthread_mutex_unlock(&pt->lock);
}

/* ---- telling ---- */

void qf_passthrough_describe(qf_passthrough *pt, struct qf_buf *out)
{
    pthread_mutex_lock(&pt->lock);
    await_answer(pt);
    if (pt->state == STATE_ON)
        qf_buf_append_str(out, "on");
    else
        qf_buf_appendf(out, "off (%s)", pt->why);
    pthread_mutex_unlock(&pt->lock);
}

uint64_t qf_passthrough_opens(qf_passthrough *pt)
{
    pthread_mutex_lock(&pt->lock);
    uint64_t opens = pt->opens;
    pthread_mutex_unlock(&pt->lock);
    return opens;
}
