/* SPDX-License-Identifier: Apache-2.0 */
/* The journal is written before the kernel is answered. A daemon that dies between the
 * two leaves a handle that nobody knows of; the kernel then sends the open again, and
 * by its number (`unique`) that handle is found and dropped. A release is sent again in
 * the same way, and must not hit what was opened since: each daemon has its own fhs. */
#include "fs/handles.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fs/tree_private.h"

#define BUCKETS     4096u
#define DAEMON_BITS 40 /* of an fh, below the daemon's number */

struct handle {
    struct handle *next;
    uint64_t fh;
    struct qf_handle_info info;
    qf_file *file; /* at most one of the two; none: not opened again yet */
    qf_dir *dir;
};

struct qf_handles {
    qf_tree *tree;
    qf_journal *journal;
    pthread_mutex_t lock;
    uint64_t last; /* fh given out */
    struct handle *buckets[BUCKETS];
};

int qf_handles_new(qf_tree *tree, qf_journal *journal, qf_handles **out)
{
    qf_handles *handles = calloc(1, sizeof *handles);
    if (handles == NULL)
        return -ENOMEM;
    handles->tree = tree;
    handles->journal = journal;
    pthread_mutex_init(&handles->lock, NULL);
    *out = handles;
    return 0;
}

void qf_handles_free(qf_handles *handles)
{
    if (handles == NULL)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        while (handles->buckets[i] != NULL) {
            struct handle *handle = handles->buckets[i];
            handles->buckets[i] = handle->next;
            free(handle);
        }
    }
    pthread_mutex_destroy(&handles->lock);
    free(handles);
}

/* ---- the table; with the lock held ---- */

static struct handle **find(qf_handles *handles, uint64_t fh)
{
    struct handle **link = &handles->buckets[fh % BUCKETS];
    while (*link != NULL && (*link)->fh != fh)
        link = &(*link)->next;
    return link;
}

static int insert(qf_handles *handles, uint64_t fh, const struct qf_handle_info *info,
                  struct handle **out)
{
    struct handle *handle = calloc(1, sizeof *handle);
    if (handle == NULL)
        return -ENOMEM;
    handle->fh = fh;
    handle->info = *info;
    handle->next = handles->buckets[fh % BUCKETS];
    handles->buckets[fh % BUCKETS] = handle;
    *out = handle;
    return 0;
}

static void write_down(qf_handles *handles, const struct handle *handle)
{
    qf_journal_set(handles->journal, QF_JOURNAL_OPEN, handle->fh, &handle->info,
                   sizeof handle->info);
    if (handle->file == NULL || !qf_file_is_dynamic(handle->file))
        return;
    size_t size;
    const char *text = qf_file_dynamic_text(handle->file, &size);
    qf_journal_set(handles->journal, QF_JOURNAL_TEXT, handle->fh, text, size);
}

static void write_down_end(qf_handles *handles, const struct handle *handle)
{
    /* In this order: no text is left for another file of the same number. */
    if (handle->file != NULL && qf_file_is_dynamic(handle->file))
        qf_journal_delete(handles->journal, QF_JOURNAL_TEXT, handle->fh);
    qf_journal_delete(handles->journal, QF_JOURNAL_OPEN, handle->fh);
}

/* Returns what it held, to be closed without the lock. */
static struct handle take_out(qf_handles *handles, struct handle **link)
{
    struct handle *handle = *link, held = *handle;
    *link = handle->next;
    if (handles->journal != NULL)
        write_down_end(handles, handle);
    free(handle);
    return held;
}

static void close_held(const struct handle *held)
{
    qf_file_close(held->file);
    qf_dir_close(held->dir);
}

/* ---- what a daemon before this one had open ---- */

struct restore {
    qf_handles *handles;
    void (*each)(void *arg, const struct qf_handle_info *info);
    void *arg;
};

static int restore_one(void *arg, uint64_t fh, const void *data, size_t size)
{
    struct restore *restore = arg;
    struct qf_handle_info info;
    struct handle *handle;
    if (size != sizeof info)
        return -EBADMSG;
    memcpy(&info, data, sizeof info);
    int rc = insert(restore->handles, fh, &info, &handle);
    if (rc != 0)
        return rc;
    restore->each(restore->arg, &info);
    return 0;
}

/* After all opens. */
static int restore_text(void *arg, uint64_t fh, const void *data, size_t size)
{
    struct restore *restore = arg;
    struct handle *handle = *find(restore->handles, fh);
    return handle == NULL
               ? -EBADMSG
               : qf_file_open_text(restore->handles->tree, data, size, &handle->file);
}

static int take_number(void *arg, uint64_t key, const void *data, size_t size)
{
    (void)key;
    if (size != sizeof(uint64_t))
        return -EBADMSG;
    memcpy(arg, data, size);
    return 0;
}

/* A number that no daemon before has had; with the lock held. */
static int begin_fhs(qf_handles *handles)
{
    uint64_t number = 0;
    int rc = qf_journal_each(handles->journal, QF_JOURNAL_DAEMON, take_number, &number);
    if (rc != 0)
        return rc;
    number++;
    qf_journal_set(handles->journal, QF_JOURNAL_DAEMON, 0, &number, sizeof number);
    handles->last = number << DAEMON_BITS;
    return 0;
}

int qf_handles_restore(qf_handles *handles,
                       void (*each)(void *arg, const struct qf_handle_info *info),
                       void *arg)
{
    struct restore restore = {handles, each, arg};
    pthread_mutex_lock(&handles->lock);
    int rc = begin_fhs(handles);
    if (rc == 0)
        rc = qf_journal_each(handles->journal, QF_JOURNAL_OPEN, restore_one, &restore);
    if (rc == 0)
        rc = qf_journal_each(handles->journal, QF_JOURNAL_TEXT, restore_text, &restore);
    pthread_mutex_unlock(&handles->lock);
    return rc;
}

bool qf_handles_drop(qf_handles *handles, uint64_t unique, struct qf_handle_info *info)
{
    struct handle held = {.file = NULL};
    bool found = false;
    pthread_mutex_lock(&handles->lock);
    for (size_t i = 0; i < BUCKETS && !found; i++) {
        struct handle **link = &handles->buckets[i];
        while (*link != NULL && (*link)->info.unique != unique)
            link = &(*link)->next;
        found = *link != NULL;
        if (found)
            held = take_out(handles, link);
    }
    pthread_mutex_unlock(&handles->lock);
    *info = held.info;
    close_held(&held);
    return found;
}

/* ---- opening and closing ---- */

static int add(qf_handles *handles, const struct qf_handle_info *info, qf_file *file,
               qf_dir *dir, uint64_t *fh)
{
    struct handle *handle = NULL;
    pthread_mutex_lock(&handles->lock);
    int rc = insert(handles, handles->last + 1, info, &handle);
    if (rc == 0) {
        *fh = ++handles->last;
        handle->file = file;
        handle->dir = dir;
        if (handles->journal != NULL)
            write_down(handles, handle);
    }
    pthread_mutex_unlock(&handles->lock);
    if (rc != 0) {
        qf_file_close(file);
        qf_dir_close(dir);
    }
    return rc;
}

int qf_handles_add_file(qf_handles *handles, const struct qf_handle_info *info,
                        qf_file *file, uint64_t *fh)
{
    return add(handles, info, file, NULL, fh);
}

int qf_handles_add_dir(qf_handles *handles, const struct qf_handle_info *info,
                       qf_dir *dir, uint64_t *fh)
{
    return add(handles, info, NULL, dir, fh);
}

bool qf_handles_release(qf_handles *handles, uint64_t fh, struct qf_handle_info *info)
{
    struct handle held = {.file = NULL};
    pthread_mutex_lock(&handles->lock);
    struct handle **link = find(handles, fh);
    bool found = *link != NULL;
    if (found)
        held = take_out(handles, link);
    pthread_mutex_unlock(&handles->lock);
    *info = held.info;
    close_held(&held);
    return found;
}

/* ---- using ---- */

static int reopen_file(qf_handles *handles, const struct qf_handle_info *info,
                       qf_file **out)
{
    int rc = qf_file_reopen(handles->tree, info->node, info->generation, out);
    if (rc == 0 && qf_file_is_dynamic(*out)) { /* its text would be in the journal */
        qf_file_close(*out);
        rc = -ESTALE;
    }
    return rc;
}

static int reopen_dir(qf_handles *handles, const struct qf_handle_info *info,
                      qf_dir **out)
{
    int rc = qf_tree_opendir(handles->tree, info->node, out);
    if (rc == 0 && qf_dir_generation(*out) != info->generation) {
        qf_dir_close(*out);
        rc = -ESTALE;
    }
    return rc;
}

/* Puts what was opened again behind its handle, unless somebody else was faster or it
 * has been released. */
static void put_back(qf_handles *handles, uint64_t fh, qf_file **file, qf_dir **dir)
{
    pthread_mutex_lock(&handles->lock);
    struct handle *handle = *find(handles, fh);
    if (handle != NULL && handle->file == NULL && handle->dir == NULL) {
        handle->file = *file;
        handle->dir = *dir;
        *file = NULL;
        *dir = NULL;
    }
    pthread_mutex_unlock(&handles->lock);
    qf_file_close(*file);
    qf_dir_close(*dir);
}

/* 0 with the handle's info, and what is behind it (a reference, for a file). */
static int look(qf_handles *handles, uint64_t fh, struct qf_handle_info *info,
                qf_file **file, qf_dir **dir)
{
    pthread_mutex_lock(&handles->lock);
    const struct handle *handle = *find(handles, fh);
    if (handle != NULL) {
        *info = handle->info;
        *file = handle->file;
        *dir = handle->dir;
        if (*file != NULL)
            qf_file_hold(*file);
    }
    pthread_mutex_unlock(&handles->lock);
    return handle != NULL ? 0 : -EBADF;
}

int qf_handles_file(qf_handles *handles, uint64_t fh, qf_file **out)
{
    struct qf_handle_info info;
    qf_dir *dir;
    for (;;) {
        int rc = look(handles, fh, &info, out, &dir);
        if (rc != 0 || *out != NULL)
            return rc;
        if (dir != NULL)
            return -EISDIR;
        qf_file *file;
        rc = reopen_file(handles, &info, &file);
        if (rc != 0)
            return rc;
        put_back(handles, fh, &file, &dir);
    }
}

int qf_handles_dir(qf_handles *handles, uint64_t fh, qf_dir **out)
{
    struct qf_handle_info info;
    qf_file *file;
    for (;;) {
        int rc = look(handles, fh, &info, &file, out);
        if (rc != 0 || *out != NULL)
            return rc;
        if (file != NULL) {
            qf_file_close(file);
            return -ENOTDIR;
        }
        qf_dir *dir;
        rc = reopen_dir(handles, &info, &dir);
        if (rc != 0)
            return rc;
        put_back(handles, fh, &file, &dir);
    }
}
