/* SPDX-License-Identifier: Apache-2.0 */
/* A model is a few hundred kilobytes of headers and plans, a store may hold thousands:
 * entries are made when a file of their directory is looked up, and the least recently
 * used ones go when their estimated size passes the limit.
 *
 * The catalog's lock guards table and LRU list; each entry's own lock is held while its
 * directory is read, so that one slow directory does not hold up the others and nothing
 * is read twice at once. */
#include "fs/catalog.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"

#define BUCKETS 512

struct qf_snapshot {
    _Atomic uint32_t refs;
    struct qf_model *model;
    const struct qf_view *views; /* what its variants are made with */
    pthread_mutex_t lock;        /* while a variant is made */
    struct qf_variant *variants[QF_VIEWS_MAX];
    _Atomic uint64_t weight; /* estimated bytes */
};

struct entry {
    struct entry *bucket_next;
    struct entry *lru_prev, *lru_next;
    uint32_t users; /* guarded by the catalog's lock */
    char *path;
    pthread_mutex_t lock;
    qf_snapshot *snapshot; /* a reference */
    int64_t checked_ms;
    uint64_t weight; /* as counted in the catalog */
};

struct qf_catalog {
    const qf_root *root;
    const struct qf_view *_Atomic views;
    size_t view_count;
    uint64_t memory_limit;
    pthread_mutex_t lock;
    struct entry *buckets[BUCKETS];
    struct entry *lru_head, *lru_tail; /* least recently used first */
    uint64_t weight;
    _Atomic uint64_t models_loaded, header_bytes_read;
};

/* ---- snapshots ---- */

void qf_snapshot_release(qf_snapshot *snapshot)
{
    if (snapshot == NULL || atomic_fetch_sub(&snapshot->refs, 1) != 1)
        return;
    for (size_t i = 0; i < QF_VIEWS_MAX; i++)
        qf_variant_free(snapshot->variants[i]);
    qf_model_free(snapshot->model);
    pthread_mutex_destroy(&snapshot->lock);
    free(snapshot);
}

static uint64_t header_bytes(const struct qf_model *model)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < model->set_count; i++)
        for (size_t k = 0; k < model->sets[i].shard_count; k++)
            sum += model->sets[i].shards[k].header->data_off;
    return sum;
}

static int snapshot_load(qf_catalog *catalog, const char *path, qf_snapshot **out)
{
    struct qf_err err = {""};
    struct qf_model *model;
    int rc = qf_model_load(catalog->root, path, &model, &err);
    if (rc != 0) {
        qf_log_repeated(QF_LOG_WARN, path, "%s",
                        err.text[0] != '\0' ? err.text : strerror(-rc));
        return rc;
    }
    qf_snapshot *snapshot = calloc(1, sizeof *snapshot);
    if (snapshot == NULL) {
        qf_model_free(model);
        return -ENOMEM;
    }
    atomic_store(&snapshot->refs, 1);
    pthread_mutex_init(&snapshot->lock, NULL);
    snapshot->model = model;
    snapshot->views = atomic_load(&catalog->views);
    uint64_t headers = header_bytes(model);
    atomic_store(&snapshot->weight, 4096 + 2 * headers + model->config_size);
    atomic_fetch_add(&catalog->models_loaded, 1);
    atomic_fetch_add(&catalog->header_bytes_read, headers);
    if (model->reason_is_error)
        qf_log(QF_LOG_WARN, "%s: passed through as it is: %s", path, model->reason);
    *out = snapshot;
    return 0;
}

/* ---- table and LRU; with the catalog's lock held ---- */

static size_t bucket_of(const char *path)
{
    return qf_hash64(path, strlen(path)) % BUCKETS;
}

static void lru_remove(qf_catalog *catalog, struct entry *entry)
{
    if (entry->lru_prev != NULL)
        entry->lru_prev->lru_next = entry->lru_next;
    else
        catalog->lru_head = entry->lru_next;
    if (entry->lru_next != NULL)
        entry->lru_next->lru_prev = entry->lru_prev;
    else
        catalog->lru_tail = entry->lru_prev;
}

static void lru_append(qf_catalog *catalog, struct entry *entry)
{
    entry->lru_prev = catalog->lru_tail;
    entry->lru_next = NULL;
    if (catalog->lru_tail != NULL)
        catalog->lru_tail->lru_next = entry;
    else
        catalog->lru_head = entry;
    catalog->lru_tail = entry;
}

static void entry_free(struct entry *entry)
{
    qf_snapshot_release(entry->snapshot);
    pthread_mutex_destroy(&entry->lock);
    free(entry->path);
    free(entry);
}

static void entry_drop(qf_catalog *catalog, struct entry *entry)
{
    struct entry **link = &catalog->buckets[bucket_of(entry->path)];
    while (*link != entry)
        link = &(*link)->bucket_next;
    *link = entry->bucket_next;
    lru_remove(catalog, entry);
    catalog->weight -= entry->weight;
    entry_free(entry);
}

/* The entry used last stays, however heavy: a model that is larger than the limit must
 * not be read again for each of its files. */
static void shrink(qf_catalog *catalog)
{
    struct entry *entry = catalog->lru_head;
    while (entry != catalog->lru_tail && catalog->weight > catalog->memory_limit) {
        struct entry *next = entry->lru_next;
        if (entry->users == 0)
            entry_drop(catalog, entry);
        entry = next;
    }
}

static struct entry *entry_get(qf_catalog *catalog, const char *path)
{
    pthread_mutex_lock(&catalog->lock);
    size_t bucket = bucket_of(path);
    struct entry *entry = catalog->buckets[bucket];
    while (entry != NULL && strcmp(entry->path, path) != 0)
        entry = entry->bucket_next;
    if (entry != NULL) {
        lru_remove(catalog, entry);
        lru_append(catalog, entry);
    } else if ((entry = calloc(1, sizeof *entry)) != NULL) {
        entry->path = strdup(path);
        if (entry->path == NULL) {
            free(entry);
            entry = NULL;
        } else {
            pthread_mutex_init(&entry->lock, NULL);
            entry->bucket_next = catalog->buckets[bucket];
            catalog->buckets[bucket] = entry;
            lru_append(catalog, entry);
        }
    }
    if (entry != NULL)
        entry->users++;
    pthread_mutex_unlock(&catalog->lock);
    return entry;
}

/* Counts what the entry weighs now and lets it go. */
static void entry_put(qf_catalog *catalog, struct entry *entry, uint64_t weight)
{
    pthread_mutex_lock(&catalog->lock);
    catalog->weight += weight - entry->weight;
    entry->weight = weight;
    entry->users--;
    shrink(catalog);
    pthread_mutex_unlock(&catalog->lock);
}

/* ---- */

/* With the entry's lock held. */
static int refresh(qf_catalog *catalog, struct entry *entry, bool force)
{
    int64_t now = qf_clock_ms();
    if (entry->snapshot != NULL &&
        entry->snapshot->views == atomic_load(&catalog->views)) {
        if (!force && now >= entry->checked_ms &&
            now - entry->checked_ms < QF_CATALOG_FRESH_MS)
            return 0;
        if (qf_model_check(catalog->root, entry->path, entry->snapshot->model) == 0) {
            entry->checked_ms = now;
            return 0;
        }
    }
    qf_snapshot_release(entry->snapshot);
    entry->snapshot = NULL;
    entry->checked_ms = now;
    return snapshot_load(catalog, entry->path, &entry->snapshot);
}

static int variant_of(qf_snapshot *snapshot, const char *path, size_t view,
                      const struct qf_variant **out)
{
    int rc = 0;
    pthread_mutex_lock(&snapshot->lock);
    struct qf_variant *variant = snapshot->variants[view];
    if (variant == NULL) {
        rc = qf_variant_new(snapshot->model, &snapshot->views[view], &variant);
        if (rc == 0) {
            snapshot->variants[view] = variant;
            atomic_fetch_add(&snapshot->weight,
                             4 * header_bytes(snapshot->model) + 4096);
            if (snapshot->model->kind != QF_MODEL_NONE &&
                snapshot->model->reason[0] == '\0' && variant->reason[0] != '\0')
                qf_log(QF_LOG_INFO, "%s/%s: passed through as it is: %s",
                       snapshot->views[view].name, path, variant->reason);
        }
    }
    pthread_mutex_unlock(&snapshot->lock);
    *out = variant;
    return rc;
}

int qf_catalog_get(qf_catalog *catalog, const char *path, size_t view, bool force,
                   qf_snapshot **snapshot, const struct qf_variant **variant)
{
    assert(view < catalog->view_count);
    struct entry *entry = entry_get(catalog, path);
    if (entry == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&entry->lock);
    int rc = refresh(catalog, entry, force);
    qf_snapshot *found = rc == 0 ? entry->snapshot : NULL;
    if (found != NULL)
        atomic_fetch_add(&found->refs, 1);
    pthread_mutex_unlock(&entry->lock);
    if (rc == 0)
        rc = variant_of(found, path, view, variant);
    entry_put(catalog, entry, found != NULL ? atomic_load(&found->weight) : 0);
    if (rc != 0) {
        qf_snapshot_release(found);
        return rc;
    }
    *snapshot = found;
    return 0;
}

int qf_catalog_new(const qf_root *root, const struct qf_view *views, size_t view_count,
                   uint64_t memory_limit, qf_catalog **out)
{
    qf_catalog *catalog = calloc(1, sizeof *catalog);
    if (catalog == NULL)
        return -ENOMEM;
    catalog->root = root;
    atomic_init(&catalog->views, views);
    catalog->view_count = view_count;
    catalog->memory_limit = memory_limit;
    pthread_mutex_init(&catalog->lock, NULL);
    *out = catalog;
    return 0;
}

void qf_catalog_set_views(qf_catalog *catalog, const struct qf_view *views)
{
    atomic_store(&catalog->views, views);
}

void qf_catalog_free(qf_catalog *catalog)
{
    if (catalog == NULL)
        return;
    while (catalog->lru_head != NULL)
        entry_drop(catalog, catalog->lru_head);
    pthread_mutex_destroy(&catalog->lock);
    free(catalog);
}

void qf_catalog_stats(const qf_catalog *catalog, struct qf_catalog_stats *out)
{
    out->models_loaded = atomic_load(&catalog->models_loaded);
    out->header_bytes_read = atomic_load(&catalog->header_bytes_read);
}
