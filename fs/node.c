/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/node.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define BUCKETS_FIRST 1024

struct qf_node {
    struct qf_node *next;
    uint64_t id;
    uint64_t generation;
    uint64_t lookups; /* references of the kernel's */
    uint64_t changed; /* when its generation became unsure; 0: it is not */
    const char *path; /* behind the view */
    char view[];
};

int qf_node_table_init(struct qf_node_table *table)
{
    *table = (struct qf_node_table){.bucket_count = BUCKETS_FIRST};
    table->buckets = calloc(table->bucket_count, sizeof *table->buckets);
    if (table->buckets == NULL)
        return -ENOMEM;
    pthread_mutex_init(&table->lock, NULL);
    return 0;
}

void qf_node_table_fini(struct qf_node_table *table)
{
    if (table->buckets == NULL)
        return;
    for (size_t i = 0; i < table->bucket_count; i++) {
        while (table->buckets[i] != NULL) {
            struct qf_node *node = table->buckets[i];
            table->buckets[i] = node->next;
            free(node);
        }
    }
    free(table->buckets);
    pthread_mutex_destroy(&table->lock);
}

uint64_t qf_node_id(const char *view, const char *path)
{
    if (view[0] == '\0')
        return QF_NODE_ROOT;
    const uint64_t pair[] = {qf_hash64(view, strlen(view)),
                             qf_hash64(path, strlen(path))};
    uint64_t id = qf_hash64(pair, sizeof pair);
    /* 0 and 1 mean "none" and the root to the kernel. */
    return id > QF_NODE_ROOT ? id : id + 2;
}

static struct qf_node **find(struct qf_node_table *table, uint64_t id)
{
    struct qf_node **link = &table->buckets[id % table->bucket_count];
    while (*link != NULL && (*link)->id != id)
        link = &(*link)->next;
    return link;
}

/* Doubles the buckets; without memory the chains just grow longer. */
static void grow(struct qf_node_table *table)
{
    size_t count = table->bucket_count * 2;
    struct qf_node **buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return;
    for (size_t i = 0; i < table->bucket_count; i++) {
        while (table->buckets[i] != NULL) {
            struct qf_node *node = table->buckets[i];
            table->buckets[i] = node->next;
            node->next = buckets[node->id % count];
            buckets[node->id % count] = node;
        }
    }
    free(table->buckets);
    table->buckets = buckets;
    table->bucket_count = count;
}

/* Enters a node that is not there. */
static struct qf_node *enter(struct qf_node_table *table, uint64_t id, const char *view,
                             const char *path)
{
    size_t view_size = strlen(view) + 1, path_size = strlen(path) + 1;
    struct qf_node *node = calloc(1, sizeof *node + view_size + path_size);
    if (node == NULL)
        return NULL;
    if (table->count++ > table->bucket_count)
        grow(table);
    node->id = id;
    node->path = memcpy(node->view + view_size, path, path_size);
    memcpy(node->view, view, view_size);
    node->next = table->buckets[id % table->bucket_count];
    table->buckets[id % table->bucket_count] = node;
    return node;
}

/* ---- the journal ---- */

static void write_down(const struct qf_node_table *table, const struct qf_node *node)
{
    if (table->journal == NULL)
        return;
    size_t view_size = strlen(node->view) + 1, path_size = strlen(node->path) + 1;
    size_t size = sizeof(struct qf_node_record) + view_size + path_size;
    struct qf_node_record *record = malloc(size);
    if (record == NULL) {
        qf_journal_end(table->journal);
        return;
    }
    record->generation = node->generation;
    record->unsure = node->changed != 0;
    record->view_size = (uint32_t)view_size;
    char *names = (char *)(record + 1);
    memcpy(names, node->view, view_size);
    memcpy(names + view_size, node->path, path_size);
    qf_journal_set(table->journal, QF_JOURNAL_NODE, node->id, record, size);
    free(record);
}

int qf_node_restore(struct qf_node_table *table, uint64_t id, const char *view,
                    const char *path, uint64_t generation, bool unsure)
{
    pthread_mutex_lock(&table->lock);
    struct qf_node *node = *find(table, id);
    if (node == NULL)
        node = enter(table, id, view, path);
    if (node != NULL) {
        node->generation = generation;
        node->changed = unsure ? ++table->clock : 0;
        node->lookups = 1;
    }
    pthread_mutex_unlock(&table->lock);
    return node != NULL ? 0 : -ENOMEM;
}

void qf_node_keep(struct qf_node_table *table, qf_journal *journal)
{
    pthread_mutex_lock(&table->lock);
    table->journal = journal;
    pthread_mutex_unlock(&table->lock);
}

/* ---- */

uint64_t qf_node_ticket(struct qf_node_table *table)
{
    pthread_mutex_lock(&table->lock);
    uint64_t ticket = ++table->clock;
    pthread_mutex_unlock(&table->lock);
    return ticket;
}

static void set_generation(struct qf_node_table *table, struct qf_node *node,
                           uint64_t ticket, uint64_t generation)
{
    if (ticket > node->changed && node->changed != 0)
        node->changed = 0;
    else if (node->lookups > 0 && node->generation != generation)
        node->changed = ++table->clock;
    node->generation = generation;
}

void qf_node_doubt(struct qf_node_table *table, uint64_t id)
{
    pthread_mutex_lock(&table->lock);
    struct qf_node *node = *find(table, id);
    if (node != NULL) {
        node->changed = ++table->clock;
        write_down(table, node);
    }
    pthread_mutex_unlock(&table->lock);
}

int qf_node_remember(struct qf_node_table *table, uint64_t ticket, uint64_t id,
                     const char *view, const char *path, uint64_t generation)
{
    int rc = 0;
    pthread_mutex_lock(&table->lock);
    struct qf_node *node = *find(table, id);
    if (node != NULL &&
        (strcmp(node->view, view) != 0 || strcmp(node->path, path) != 0)) {
        rc = -EIO;
    } else if (node == NULL) {
        node = enter(table, id, view, path);
        rc = node != NULL ? 0 : -ENOMEM;
    }
    if (rc == 0) {
        uint64_t was = node->generation;
        bool unsure = node->changed != 0, fresh = node->lookups == 0;
        set_generation(table, node, ticket, generation);
        node->lookups++;
        if (fresh || was != generation || unsure != (node->changed != 0))
            write_down(table, node);
    }
    pthread_mutex_unlock(&table->lock);
    return rc;
}

void qf_node_forget(struct qf_node_table *table, uint64_t id, uint64_t count)
{
    pthread_mutex_lock(&table->lock);
    struct qf_node **link = find(table, id);
    struct qf_node *node = *link;
    if (node != NULL) {
        node->lookups = node->lookups > count ? node->lookups - count : 0;
        if (node->lookups == 0) {
            *link = node->next;
            table->count--;
            free(node);
            if (table->journal != NULL)
                qf_journal_delete(table->journal, QF_JOURNAL_NODE, id);
        }
    }
    pthread_mutex_unlock(&table->lock);
}

int qf_node_find(struct qf_node_table *table, uint64_t id, struct qf_place *place,
                 uint64_t *generation)
{
    int rc = -ENOENT;
    pthread_mutex_lock(&table->lock);
    const struct qf_node *node = *find(table, id);
    if (node != NULL) {
        strcpy(place->view, node->view);
        place->path = strdup(node->path);
        *generation = node->changed == 0 ? node->generation : QF_GENERATION_UNSURE;
        rc = place->path != NULL ? 0 : -ENOMEM;
    }
    pthread_mutex_unlock(&table->lock);
    return rc;
}
