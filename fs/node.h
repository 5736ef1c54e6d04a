/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: what the kernel knows a file by. A node's id is a pure function of the view
 * and the path in it, so ids are the same after a restart and on every machine; the
 * table only remembers which path an id stands for while the kernel holds it. */
#ifndef QF_FS_NODE_H
#define QF_FS_NODE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "fs/journal.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_NODE_ROOT UINT64_C(1)
/* The generation of no contents. */
#define QF_GENERATION_UNSURE UINT64_MAX

#define QF_CONTROL_DIR       ".quantfs"

struct qf_place {
    char view[QF_VIEW_NAME_SIZE]; /* the view's name, QF_CONTROL_DIR, or "" for the
                                     mount's root (path "" then) */
    char *path;                   /* relative, "" for the view's top; owned */
};

static inline bool qf_place_is_root(const struct qf_place *place)
{
    return place->view[0] == '\0';
}

static inline bool qf_place_is_control(const struct qf_place *place)
{
    return strcmp(place->view, QF_CONTROL_DIR) == 0;
}

static inline bool qf_place_is_in_view(const struct qf_place *place)
{
    return !qf_place_is_root(place) && !qf_place_is_control(place);
}

struct qf_node_table {
    pthread_mutex_t lock;
    struct qf_node **buckets;
    size_t bucket_count;
    size_t count;
    uint64_t clock;      /* of lookups and of changes that they found */
    qf_journal *journal; /* borrowed; NULL: none */
};

int qf_node_table_init(struct qf_node_table *table) QF_MUST_CHECK;
void qf_node_table_fini(struct qf_node_table *table);

/* One that the journal has, with the reference that the kernel holds at least; the
 * caller has made sure that the path has this id. */
int qf_node_restore(struct qf_node_table *table, uint64_t id, const char *view,
                    const char *path, uint64_t generation, bool unsure) QF_MUST_CHECK;
/* Writes what changes into the journal from now on. */
void qf_node_keep(struct qf_node_table *table, qf_journal *journal);
/* What stands there; behind it the view's name and then the path, each with its NUL. */
struct qf_node_record {
    uint64_t generation;
    uint32_t unsure;
    uint32_t view_size; /* with the NUL */
};

/* view, path: as in a place. */
uint64_t qf_node_id(const char *view, const char *path);
/* A lookup begins; its ticket is for qf_node_remember. */
uint64_t qf_node_ticket(struct qf_node_table *table);
/* One more reference of the kernel's. The table remembers `generation` as the one that
 * the kernel was told last. When it is another one than before, two lookups may have
 * been under way with different answers, and nobody can tell which of the two replies
 * the kernel took last: until a lookup that began later confirms it, the node has
 * QF_GENERATION_UNSURE. -EIO when another path has this id (two paths with one hash:
 * refused rather than confused). */
int qf_node_remember(struct qf_node_table *table, uint64_t ticket, uint64_t id,
                     const char *view, const char *path,
                     uint64_t generation) QF_MUST_CHECK;
/* The contents are not those that the kernel was told last: QF_GENERATION_UNSURE until
 * a lookup that begins later. */
void qf_node_doubt(struct qf_node_table *table, uint64_t id);
void qf_node_forget(struct qf_node_table *table, uint64_t id, uint64_t count);
/* A copy of the place (free place->path) and the generation told last; -ENOENT for an
 * id that the table does not hold. */
int qf_node_find(struct qf_node_table *table, uint64_t id, struct qf_place *place,
                 uint64_t *generation) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
