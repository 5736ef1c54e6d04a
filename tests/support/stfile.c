/* SPDX-License-Identifier: Apache-2.0 */
#include "support/stfile.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "support/tmpdir.h"

static uint64_t tensor_size(const struct stfile_tensor *t)
{
    uint64_t bits = qf_dtype_bits(t->dtype);
    for (uint32_t i = 0; i < t->rank; i++)
        bits *= t->shape[i];
    return bits / 8;
}

/* Finite values of about weight's size, whatever the dtype; the same for a name. */
static void fill_pattern(const struct stfile_tensor *t, unsigned char *out,
                         uint64_t size)
{
    uint32_t state = 2166136261u;
    for (const char *p = t->name; *p != '\0'; p++)
        state = (state ^ (unsigned char)*p) * 16777619u;
    for (uint64_t i = 0; i < size; i++) {
        state = state * 1664525u + 1013904223u;
        out[i] = (unsigned char)(state >> 24);
        size_t width = qf_dtype_is_float(t->dtype) ? qf_dtype_size(t->dtype) : 0;
        if (width != 0 && i % width == width - 1)
            out[i] = (unsigned char)((out[i] & 0x83) | 0x38);
    }
}

unsigned char *stfile_make(const struct stfile_tensor *tensors, size_t count,
                           size_t *size)
{
    struct qf_buf header = {0};
    uint64_t off = 0;
    qf_buf_append_str(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < count; i++) {
        const struct stfile_tensor *t = &tensors[i];
        qf_buf_append_str(&header, ",");
        qf_buf_append_json(&header, t->name, strlen(t->name));
        qf_buf_appendf(&header, ":{\"dtype\":\"%s\",\"shape\":[",
                       qf_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->rank; d++)
            qf_buf_appendf(&header, "%s%llu", d != 0 ? "," : "",
                           (unsigned long long)t->shape[d]);
        qf_buf_appendf(&header, "],\"data_offsets\":[%llu,%llu]}",
                       (unsigned long long)off,
                       (unsigned long long)(off + tensor_size(t)));
        off += tensor_size(t);
    }
    qf_buf_append_str(&header, "}");
    qf_buf_append_fill(&header, ' ', (8 - header.size % 8) % 8);
    char *text = qf_buf_take(&header, NULL);
    assert(text != NULL);
    unsigned char *file = stfile_raw(text, off, size);
    unsigned char *data = file + 8 + strlen(text);
    for (size_t i = 0; i < count; i++) {
        uint64_t n = tensor_size(&tensors[i]);
        if (tensors[i].data != NULL)
            memcpy(data, tensors[i].data, n);
        else
            fill_pattern(&tensors[i], data, n);
        data += n;
    }
    free(text);
    return file;
}

void stfile_write(const char *dir, const char *path,
                  const struct stfile_tensor *tensors, size_t count)
{
    size_t size;
    unsigned char *file = stfile_make(tensors, count, &size);
    tmpdir_write(dir, path, file, size);
    free(file);
}

unsigned char *stfile_raw(const char *header, size_t data_size, size_t *size)
{
    size_t n = strlen(header);
    unsigned char *file = calloc(1, 8 + n + data_size + 1);
    assert(file != NULL);
    qf_store_u64(file, n);
    memcpy(file + 8, header, n);
    *size = 8 + n + data_size;
    return file;
}
