/* SPDX-License-Identifier: Apache-2.0 */
/* Every field of the head is either compared with what the reader knows already (magic,
 * version, key, size against the size LMDB reports) or, for the checksum, proves
 * itself; so the head needs no checksum of its own. */
#include "cache/record.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"

#define RECORD_MAGIC   UINT64_C(0x64726f6365726671) /* "qfrecord" */
#define RECORD_VERSION 1u

struct head {
    uint64_t magic;
    uint32_t version;
    uint32_t head_size;
    struct qf_hash128 key;
    uint64_t size;
    uint64_t checksum;
    uint64_t serial;
    uint64_t reserved; /* zero */
};

static_assert(sizeof(struct head) == QF_RECORD_HEAD_SIZE, "as it lies in the file");

size_t qf_record_stored_size(size_t size, size_t size_min)
{
    size_t stored = QF_RECORD_HEAD_SIZE + size;
    return stored < size_min ? size_min : stored;
}

void qf_record_write(void *stored, size_t stored_size, struct qf_hash128 key,
                     const void *data, size_t size, uint64_t serial)
{
    assert(stored_size >= QF_RECORD_HEAD_SIZE + size);
    const struct head head = {
        .magic = RECORD_MAGIC,
        .version = RECORD_VERSION,
        .head_size = QF_RECORD_HEAD_SIZE,
        .key = key,
        .size = size,
        .checksum = qf_hash64(data, size),
        .serial = serial,
    };
    char *p = stored;
    memcpy(p, &head, sizeof head);
    if (size > 0)
        memcpy(p + sizeof head, data, size);
    memset(p + sizeof head + size, 0, stored_size - sizeof head - size);
}

bool qf_record_parse(const void *stored, size_t stored_size, size_t size_min,
                     struct qf_hash128 key, struct qf_record *out)
{
    struct head head;
    if (stored_size < sizeof head)
        return false;
    memcpy(&head, stored, sizeof head);
    if (head.magic != RECORD_MAGIC || head.version != RECORD_VERSION ||
        head.head_size != sizeof head || head.reserved != 0 ||
        !qf_hash128_eq(head.key, key))
        return false;
    if (head.size > stored_size - sizeof head ||
        qf_record_stored_size(head.size, size_min) != stored_size)
        return false;
    *out = (struct qf_record){
        .data = (const char *)stored + sizeof head,
        .size = head.size,
        .checksum = head.checksum,
        .serial = head.serial,
    };
    return true;
}

bool qf_record_verify(const struct qf_record *record)
{
    return qf_hash64(record->data, record->size) == record->checksum;
}
