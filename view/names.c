/* SPDX-License-Identifier: Apache-2.0 */
/* A view is named after its codec; the settings of bitsandbytes are its defaults. */
#include "view/names.h"

#include <stdio.h>
#include <string.h>

const char qf_view_default_list[] = "nf4:int8:dq:fp4";

int qf_view_parse(const char *name, size_t size, struct qf_view *out,
                  struct qf_err *err)
{
    char text[QF_VIEW_NAME_SIZE];
    enum qf_codec codec;
    if (size < sizeof text && memchr(name, '\0', size) == NULL) {
        memcpy(text, name, size);
        text[size] = '\0';
        if (qf_codec_from_name(text, &codec)) {
            struct qf_codec_spec spec = qf_codec_default(codec, QF_F32);
            *out = (struct qf_view){.codec = codec,
                                    .blocksize = spec.blocksize,
                                    .storage = spec.storage,
                                    .dtype = QF_DTYPE_NONE,
                                    .compute = QF_DTYPE_NONE,
                                    .int8_threshold = 6.0};
            memcpy(out->name, text, size + 1);
            return 0;
        }
    }
    return qf_err_set(err, -ENOENT, "no view is called '%.*s' (there are: %s)",
                      size < sizeof text ? (int)size : (int)sizeof text, name,
                      qf_view_default_list);
}

int qf_view_parse_list(const char *list, struct qf_view views[QF_VIEWS_MAX],
                       size_t *count, struct qf_err *err)
{
    size_t n = 0;
    for (const char *at = list;; at++) {
        size_t size = strcspn(at, ":");
        if (size == 0)
            return qf_err_set(err, -EINVAL, "views '%s': an empty name", list);
        if (n == QF_VIEWS_MAX)
            return qf_err_set(err, -EINVAL, "views '%s': more than %d", list,
                              QF_VIEWS_MAX);
        if (qf_view_parse(at, size, &views[n], err) != 0) {
            qf_err_prefix(err, "views '%s'", list);
            return -EINVAL;
        }
        for (size_t i = 0; i < n; i++)
            if (strcmp(views[i].name, views[n].name) == 0)
                return qf_err_set(err, -EINVAL, "views '%s': '%s' is there twice", list,
                                  views[n].name);
        n++;
        at += size;
        if (*at == '\0')
            break;
    }
    *count = n;
    return 0;
}

struct qf_codec_spec qf_view_spec(const struct qf_view *view, enum qf_dtype dtype)
{
    return (struct qf_codec_spec){.codec = view->codec,
                                  .blocksize = view->blocksize,
                                  .dtype = dtype,
                                  .storage = view->storage};
}
