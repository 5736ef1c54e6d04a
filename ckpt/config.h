/* SPDX-License-Identifier: Apache-2.0 */
/* Changing a config.json as text: insert or replace one member of one object and leave
 * every other byte as it was (NaN, 1.0, integers past 2^53, odd blanks survive). */
#ifndef QF_CKPT_CONFIG_H
#define QF_CKPT_CONFIG_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One change. A change whose value is NULL removes the member, in both spellings and
 * however often it is there. */
struct qf_splice {
    const char
        *object; /* name of a top-level member that is an object; NULL: top level */
    const char *name;       /* of the member to set or remove */
    const char *value;      /* JSON text of the new value, or NULL to remove */
    const char *instead_of; /* when `name` is absent and this member is present, it is
                             * the one that is replaced, name and value (NULL: none) */
};

/* Applies the changes in order to the text of a JSON object. A new member goes to the
 * end of its object, in the indentation of the member before it. Of several equal names
 * the last one counts (as for Python), the others are left. After a "set" no second
 * spelling (`instead_of`) remains. -EBADMSG with err when the text is no JSON object
 * (NaN and Infinity are allowed) or when `object` is absent or no object. */
int qf_config_splice(const char *text, size_t size, const struct qf_splice *splices,
                     size_t count, struct qf_buf *out,
                     struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
