/* SPDX-License-Identifier: Apache-2.0 */
/* The views of a mount: those that its root lists, and every other one that a name with
 * settings asks for. A view is a pure function of its name and the policy, so none is
 * kept: who needs one makes it. */
#ifndef QF_FS_VIEWS_H
#define QF_FS_VIEWS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/limits.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_views {
    const struct qf_view *listed; /* borrowed */
    size_t listed_count;
    pthread_rwlock_t policy_lock; /* for the three below; whoever reads them holds it */
    const char *policy; /* text of overrides for all models, or NULL; borrowed */
    size_t policy_size;
    uint64_t policy_number; /* of policies before this one */
    pthread_mutex_t lock;   /* for those below */
    size_t recent_count;
    char recent[QF_VIEWS_RECENT_MAX][QF_VIEW_NAME_SIZE]; /* asked for last first */
};

void qf_views_init(struct qf_views *views, const struct qf_view *listed, size_t count,
                   const char *policy, size_t policy_size);
void qf_views_fini(struct qf_views *views);

/* Another policy from now on. When it returns nobody reads the one before. */
void qf_views_set_policy(struct qf_views *views, const char *policy, size_t size);
/* A number that is another one with each policy. A view made after this call is made
 * with this one or one that came after it. */
uint64_t qf_views_policy(struct qf_views *views);

/* The name of the view that a name in the root means: one that is listed, or one with
 * settings, of a codec of which some view is listed; any view of GGUF files. -ENOENT,
 * -ENOMEM. */
int qf_views_find(struct qf_views *views, const char *name,
                  char out[QF_VIEW_NAME_SIZE]) QF_MUST_CHECK;
/* The view of a name that qf_views_find gave, with the policy's overrides:
 * qf_view_fini. -EINVAL, -ENOMEM. */
int qf_views_make(struct qf_views *views, const char *name, struct qf_view *out,
                  struct qf_err *err) QF_MUST_CHECK;
/* Name number `index`, of those listed and then of those asked for lately; false past
 * the end. */
bool qf_views_at(struct qf_views *views, size_t index, char out[QF_VIEW_NAME_SIZE]);

#ifdef __cplusplus
}
#endif
#endif
