/* SPDX-License-Identifier: Apache-2.0 */
/* Every spelling of a view leads to the one name of it, and so to the same ids: it is
 * one directory, however it was found. What somebody has asked for and nobody holds
 * leaves no trace but its name in a short list, for handles that come back later. */
#include "fs/views.h"

#include <string.h>

#include "base/log.h"
#include "view/overrides.h"

void qf_views_init(struct qf_views *views, const struct qf_view *listed, size_t count,
                   const char *policy, size_t policy_size)
{
    *views = (struct qf_views){.listed = listed,
                               .listed_count = count,
                               .policy = policy,
                               .policy_size = policy_size};
    pthread_rwlock_init(&views->policy_lock, NULL);
    pthread_mutex_init(&views->lock, NULL);
}

void qf_views_fini(struct qf_views *views)
{
    pthread_mutex_destroy(&views->lock);
    pthread_rwlock_destroy(&views->policy_lock);
}

void qf_views_set_policy(struct qf_views *views, const char *policy, size_t size)
{
    pthread_rwlock_wrlock(&views->policy_lock);
    views->policy = policy;
    views->policy_size = size;
    views->policy_number++;
    pthread_rwlock_unlock(&views->policy_lock);
}

uint64_t qf_views_policy(struct qf_views *views)
{
    pthread_rwlock_rdlock(&views->policy_lock);
    uint64_t number = views->policy_number;
    pthread_rwlock_unlock(&views->policy_lock);
    return number;
}

int qf_views_make(struct qf_views *views, const char *name, struct qf_view *out,
                  struct qf_err *err)
{
    struct qf_view base;
    int rc = qf_view_parse(name, strlen(name), &base, err);
    if (rc != 0)
        return rc;
    pthread_rwlock_rdlock(&views->policy_lock);
    rc = qf_overrides_apply(&base, views->policy, views->policy_size, out, err);
    pthread_rwlock_unlock(&views->policy_lock);
    return rc;
}

static bool is_listed(const struct qf_views *views, const char *name)
{
    for (size_t i = 0; i < views->listed_count; i++)
        if (strcmp(views->listed[i].name, name) == 0)
            return true;
    return false;
}

static bool has_codec(const struct qf_views *views, enum qf_codec codec)
{
    for (size_t i = 0; i < views->listed_count; i++)
        if (views->listed[i].codec == codec)
            return true;
    return false;
}

static void remember(struct qf_views *views, const char *name)
{
    pthread_mutex_lock(&views->lock);
    size_t at = 0;
    while (at < views->recent_count && strcmp(views->recent[at], name) != 0)
        at++;
    if (at == views->recent_count && at < QF_VIEWS_RECENT_MAX)
        views->recent_count++;
    else if (at == views->recent_count)
        at--;
    memmove(views->recent[1], views->recent[0], at * sizeof views->recent[0]);
    strcpy(views->recent[0], name);
    pthread_mutex_unlock(&views->lock);
}

int qf_views_find(struct qf_views *views, const char *name, char out[QF_VIEW_NAME_SIZE])
{
    struct qf_view view, made;
    struct qf_err err = {""};
    int rc = qf_view_parse(name, strlen(name), &view, &err);
    if (rc == 0 && !is_listed(views, view.name)) {
        if (qf_view_is_default(view.codec) && !has_codec(views, view.codec))
            return -ENOENT;
        rc = qf_views_make(views, view.name, &made, &err); /* the policy may forbid */
        if (rc == 0) {
            qf_view_fini(&made);
            remember(views, view.name);
        }
    }
    if (rc == -EINVAL)
        qf_log(QF_LOG_DEBUG, "%s", err.text);
    if (rc != 0)
        return rc == -ENOMEM ? rc : -ENOENT;
    strcpy(out, view.name);
    return 0;
}

bool qf_views_at(struct qf_views *views, size_t index, char out[QF_VIEW_NAME_SIZE])
{
    if (index < views->listed_count) {
        strcpy(out, views->listed[index].name);
        return true;
    }
    index -= views->listed_count;
    pthread_mutex_lock(&views->lock);
    bool found = index < views->recent_count;
    if (found)
        strcpy(out, views->recent[index]);
    pthread_mutex_unlock(&views->lock);
    return found;
}
