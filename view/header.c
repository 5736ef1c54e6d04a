/* SPDX-License-Identifier: Apache-2.0 */
#include "view/header.h"

#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"

unsigned qf_header_width(enum qf_dtype dtype)
{
    unsigned bits = qf_dtype_bits(dtype);
    return bits < 8 ? 1 : bits / 8;
}

void qf_header_begin(const struct qf_metadata_entry *metadata, size_t count,
                     struct qf_buf *header)
{
    bool format = false;
    qf_buf_append_fill(header, '\0', 8);
    qf_buf_append_str(header, "{\"__metadata__\":{");
    for (size_t i = 0; i < count; i++) {
        const struct qf_metadata_entry *entry = &metadata[i];
        bool is_format = strcmp(entry->key, "format") == 0;
        const char *value = is_format ? "pt" : entry->value;
        qf_buf_append_str(header, i != 0 ? "," : "");
        qf_buf_append_json(header, entry->key, strlen(entry->key));
        qf_buf_append_str(header, ":");
        qf_buf_append_json(header, value, strlen(value));
        format = format || is_format;
    }
    if (!format) {
        qf_buf_append_str(header, count != 0 ? "," : "");
        qf_buf_append_str(header, "\"format\":\"pt\"");
    }
    qf_buf_append_str(header, "}");
}

void qf_header_add(const char *name, enum qf_dtype dtype, uint32_t rank,
                   const uint64_t *shape, uint64_t off, uint64_t end,
                   struct qf_buf *header)
{
    qf_buf_append_str(header, ",");
    qf_buf_append_json(header, name, strlen(name));
    qf_buf_appendf(header, ":{\"dtype\":\"%s\",\"shape\":[", qf_dtype_name(dtype));
    for (uint32_t i = 0; i < rank; i++)
        qf_buf_appendf(header, "%s%llu", i != 0 ? "," : "",
                       (unsigned long long)shape[i]);
    qf_buf_appendf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)off,
                   (unsigned long long)end);
}

int qf_header_finish(struct qf_buf *header, char **out, size_t *size,
                     struct qf_err *err)
{
    qf_buf_append_str(header, "}");
    qf_buf_append_fill(header, ' ',
                       (QF_HEADER_ALIGN - header->size % QF_HEADER_ALIGN) %
                           QF_HEADER_ALIGN);
    *out = qf_buf_take(header, size);
    if (*out == NULL)
        return -ENOMEM;
    if (*size - 8 > QF_SHARD_HEADER_SIZE_MAX)
        return qf_err_set(err, -EFBIG,
                          "the view's header would have %zu bytes; loaders take %u",
                          *size - 8, QF_SHARD_HEADER_SIZE_MAX);
    qf_store_u64(*out, *size - 8);
    return 0;
}
