/* SPDX-License-Identifier: Apache-2.0 */
/* A model is a few hundred kilobytes of headers and plans, a store may hold thousands:
 * entries are made when a file of their directory is looked up, and the least recently
 * used ones go when their estimated size passes the limit.
 *
 * The catalog's lock guards table and LRU list; each entry's own lock is held while its
 * directory is read, so that one slow directory does not hold up the others and nothing
 * is read twice at once. */
#include "fs/catalog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/log.h"
#include "view/gguf.h"
#include "view/overrides.h"

#define BUCKETS 512

/* What was read of a directory. */
struct model {
    _Atomic uint32_t refs;
    struct qf_model *model;
};

struct qf_snapshot {
    _Atomic uint32_t refs;
    struct model *model; /* a reference */
    struct qf_variant *variant;
};

/* One state of a directory, and its variants: those used last at the end. */
struct state {
    _Atomic uint32_t refs;
    struct model *model;  /* a reference */
    uint64_t policy;      /* number of the one its variants are made with, or later */
    pthread_mutex_t lock; /* while a variant is looked for and made */
    size_t count;
    qf_snapshot *variants[QF_VARIANTS_MAX]; /* references */
    _Atomic uint64_t weight;                /* estimated bytes */
};

struct entry {
    struct entry *bucket_next;
    struct entry *lru_prev, *lru_next;
    uint32_t users; /* guarded by the catalog's lock */
    char *path;
    pthread_mutex_t lock;
    struct state *state; /* a reference */
    bool whole;          /* a view has needed the model's texts, too */
    int64_t checked_ms;
    uint64_t weight; /* as counted in the catalog */
};

struct qf_catalog {
    const qf_root *root;
    struct qf_views *views;
    uint64_t memory_limit;
    pthread_mutex_t lock;
    struct entry *buckets[BUCKETS];
    struct entry *lru_head, *lru_tail; /* least recently used first */
    uint64_t weight;
    _Atomic uint64_t models_loaded, header_bytes_read;
};

/* ---- what is shared ---- */

static void model_release(struct model *model)
{
    if (model == NULL || atomic_fetch_sub(&model->refs, 1) != 1)
        return;
    qf_model_free(model->model);
    free(model);
}

void qf_snapshot_release(qf_snapshot *snapshot)
{
    if (snapshot == NULL || atomic_fetch_sub(&snapshot->refs, 1) != 1)
        return;
    qf_variant_free(snapshot->variant);
    model_release(snapshot->model);
    free(snapshot);
}

static void state_release(struct state *state)
{
    if (state == NULL || atomic_fetch_sub(&state->refs, 1) != 1)
        return;
    for (size_t i = 0; i < state->count; i++)
        qf_snapshot_release(state->variants[i]);
    model_release(state->model);
    pthread_mutex_destroy(&state->lock);
    free(state);
}

static uint64_t header_bytes(const struct qf_model *model)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < model->set_count; i++)
        for (size_t k = 0; k < model->sets[i].shard_count; k++)
            sum += model->sets[i].shards[k].header->data_off;
    return sum;
}

static uint64_t text_bytes(const struct qf_model *model)
{
    uint64_t sum = 0;
    for (int i = 0; i < QF_MODEL_TEXT_COUNT; i++)
        sum += model->texts[i].size;
    return sum;
}

/* Takes the model. */
static int state_new(struct qf_model *model, struct state **out)
{
    struct state *state = calloc(1, sizeof *state);
    struct model *shared = calloc(1, sizeof *shared);
    if (state == NULL || shared == NULL) {
        free(state);
        free(shared);
        qf_model_free(model);
        return -ENOMEM;
    }
    *shared = (struct model){.refs = 1, .model = model};
    atomic_store(&state->refs, 1);
    state->model = shared;
    pthread_mutex_init(&state->lock, NULL);
    atomic_store(&state->weight, 4096 + 2 * header_bytes(model) + model->config_size +
                                     text_bytes(model));
    *out = state;
    return 0;
}

static int state_load(qf_catalog *catalog, const char *path, bool whole,
                      struct state **out)
{
    struct qf_err err = {""};
    struct qf_model *model;
    uint64_t policy = qf_views_policy(catalog->views);
    int rc = (whole ? qf_model_load_whole : qf_model_load)(catalog->root, path, &model,
                                                           &err);
    if (rc != 0) {
        qf_log_repeated(QF_LOG_WARN, path, "%s",
                        err.text[0] != '\0' ? err.text : strerror(-rc));
        return rc;
    }
    uint64_t headers = header_bytes(model);
    rc = state_new(model, out);
    if (rc != 0)
        return rc;
    (*out)->policy = policy;
    atomic_fetch_add(&catalog->models_loaded, 1);
    atomic_fetch_add(&catalog->header_bytes_read, headers);
    if (model->reason_is_error)
        qf_log(QF_LOG_WARN, "%s: passed through as it is: %s", path, model->reason);
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
    state_release(entry->state);
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
static int refresh(qf_catalog *catalog, struct entry *entry, bool force, bool whole)
{
    int64_t now = qf_clock_ms();
    bool enough = entry->whole || !whole;
    entry->whole = entry->whole || whole;
    if (entry->state != NULL && enough &&
        entry->state->policy == qf_views_policy(catalog->views)) {
        if (!force && now >= entry->checked_ms &&
            now - entry->checked_ms < QF_CATALOG_FRESH_MS)
            return 0;
        if (qf_model_check(catalog->root, entry->path, entry->state->model->model) ==
            0) {
            entry->checked_ms = now;
            return 0;
        }
    }
    state_release(entry->state);
    entry->state = NULL;
    entry->checked_ms = now;
    return state_load(catalog, entry->path, entry->whole, &entry->state);
}

/* ---- variants; with the state's lock held ---- */

/* Plans go with the source's headers; the view's own may be much larger. */
static uint64_t variant_weight(const struct state *state, const qf_snapshot *snapshot)
{
    uint64_t sum =
        3 * header_bytes(state->model->model) + text_bytes(state->model->model) + 4096;
    for (size_t i = 0; i < snapshot->variant->file_count; i++)
        if (snapshot->variant->files[i].layout != NULL)
            sum += snapshot->variant->files[i].layout->header_size;
    return sum;
}

/* The variant of the view moves to the end; NULL: there is none. */
static qf_snapshot *variant_find(struct state *state, const char *view)
{
    size_t i = 0;
    while (i < state->count &&
           strcmp(state->variants[i]->variant->view.name, view) != 0)
        i++;
    if (i == state->count)
        return NULL;
    qf_snapshot *found = state->variants[i];
    memmove(&state->variants[i], &state->variants[i + 1],
            (state->count - i - 1) * sizeof(qf_snapshot *));
    state->variants[state->count - 1] = found;
    return found;
}

static void variant_append(struct state *state, qf_snapshot *snapshot)
{
    if (state->count == QF_VARIANTS_MAX) {
        atomic_fetch_sub(&state->weight, variant_weight(state, state->variants[0]));
        qf_snapshot_release(state->variants[0]);
        memmove(&state->variants[0], &state->variants[1],
                --state->count * sizeof(qf_snapshot *));
    }
    state->variants[state->count++] = snapshot;
    atomic_fetch_add(&state->weight, variant_weight(state, snapshot));
}

static int variant_new(const qf_catalog *catalog, struct model *model, const char *name,
                       qf_snapshot **out)
{
    struct qf_view view;
    int rc = qf_views_make(catalog->views, name, &view, NULL);
    if (rc != 0)
        return rc;
    qf_snapshot *snapshot = calloc(1, sizeof *snapshot);
    rc = snapshot != NULL ? qf_variant_new(model->model, &view, &snapshot->variant)
                          : -ENOMEM;
    qf_view_fini(&view);
    if (rc != 0) {
        free(snapshot);
        return rc;
    }
    atomic_store(&snapshot->refs, 1);
    atomic_fetch_add(&model->refs, 1);
    snapshot->model = model;
    *out = snapshot;
    return 0;
}

/* ---- */

static int variant_of(qf_catalog *catalog, struct state *state, const char *path,
                      const char *view, qf_snapshot **out)
{
    int rc = 0;
    pthread_mutex_lock(&state->lock);
    qf_snapshot *snapshot = variant_find(state, view);
    if (snapshot == NULL) {
        rc = variant_new(catalog, state->model, view, &snapshot);
        if (rc == 0) {
            variant_append(state, snapshot);
            const struct qf_model *model = state->model->model;
            const char *reason = snapshot->variant->reason;
            if (model->kind != QF_MODEL_NONE && model->reason[0] == '\0' &&
                reason[0] != '\0')
                qf_log(QF_LOG_INFO, "%s/%s: passed through as it is: %s", view, path,
                       reason);
        }
    }
    if (rc == 0)
        atomic_fetch_add(&snapshot->refs, 1);
    pthread_mutex_unlock(&state->lock);
    *out = snapshot;
    return rc;
}

int qf_catalog_get(qf_catalog *catalog, const char *path, const char *view, bool force,
                   qf_snapshot **snapshot, const struct qf_variant **variant)
{
    struct entry *entry = entry_get(catalog, path);
    if (entry == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&entry->lock);
    int rc = refresh(catalog, entry, force, qf_gguf_is_view(view));
    struct state *state = rc == 0 ? entry->state : NULL;
    if (state != NULL)
        atomic_fetch_add(&state->refs, 1);
    pthread_mutex_unlock(&entry->lock);
    if (rc == 0)
        rc = variant_of(catalog, state, path, view, snapshot);
    entry_put(catalog, entry, state != NULL ? atomic_load(&state->weight) : 0);
    state_release(state);
    if (rc == 0)
        *variant = (*snapshot)->variant;
    return rc;
}

int qf_catalog_new(const qf_root *root, struct qf_views *views, uint64_t memory_limit,
                   qf_catalog **out)
{
    qf_catalog *catalog = calloc(1, sizeof *catalog);
    if (catalog == NULL)
        return -ENOMEM;
    catalog->root = root;
    catalog->views = views;
    catalog->memory_limit = memory_limit;
    pthread_mutex_init(&catalog->lock, NULL);
    *out = catalog;
    return 0;
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
