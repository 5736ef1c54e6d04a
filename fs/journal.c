/* SPDX-License-Identifier: Apache-2.0 */
/* A log in a mapping: a record is copied behind the last one, then `used` is moved past
 * it, so whoever maps the file after a kill sees whole records only. The last record of
 * a key counts. When the area is full, the records that count are copied to a new one
 * behind it, the header is switched over by a single store, and the old area's memory
 * is given back; offsets only grow, the file stays sparse. */
#include "fs/journal.h"

#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"

#define MAGIC     UINT64_C(0x32306a7366746e71) /* with the version */
#define PAGE      ((size_t)4096)
#define AREA_MIN  ((size_t)64 << 10)
#define AREA_GROW 4u /* times what counts */
#define AREA_MAX  ((uint64_t)1 << 40)

struct area {
    uint64_t off; /* in the file */
    uint64_t size;
    _Atomic uint64_t used;
};

struct header {
    uint64_t magic;
    _Atomic uint64_t current; /* areas[current % 2] */
    _Atomic uint64_t ended;   /* not 0: of no use */
    struct area areas[2];
};

struct record {
    uint32_t size; /* of the data; GONE: the key is deleted */
    uint32_t kind;
    uint64_t key;
};

#define GONE UINT32_MAX

struct qf_journal {
    pthread_mutex_t lock;
    int fd;
    struct header *header;
    char *map; /* the area's */
    uint64_t map_size;
};

static struct area *area_of(const qf_journal *journal)
{
    return &journal->header->areas[atomic_load(&journal->header->current) % 2];
}

static uint64_t room_of(uint64_t data_size)
{
    return sizeof(struct record) + ((data_size + 7) & ~(uint64_t)7);
}

static uint64_t data_size_of(const struct record *record)
{
    return record->size == GONE ? 0 : record->size;
}

/* The record at *at, which is moved past it; NULL: the end, or nonsense. */
static const struct record *next(const char *map, uint64_t used, uint64_t *at)
{
    if (used - *at < sizeof(struct record))
        return NULL;
    const struct record *record = (const struct record *)(const void *)(map + *at);
    uint64_t room = room_of(data_size_of(record));
    if (used - *at < room)
        return NULL;
    *at += room;
    return record;
}

/* ---- which record of a key counts ---- */

struct index {
    const struct record **slots;
    size_t mask;
};

static const struct record **slot_of(const struct index *index,
                                     const struct record *record)
{
    const uint64_t what[] = {record->kind, record->key};
    size_t i = qf_hash64(what, sizeof what) & index->mask;
    while (index->slots[i] != NULL && (index->slots[i]->kind != record->kind ||
                                       index->slots[i]->key != record->key))
        i = (i + 1) & index->mask;
    return &index->slots[i];
}

static int make_index(const char *map, uint64_t used, struct index *out)
{
    size_t count = 0, slots = 64;
    uint64_t end = 0;
    while (next(map, used, &end) != NULL)
        count++;
    if (end != used)
        return -EBADMSG;
    while (slots < 2 * count)
        slots *= 2;
    out->mask = slots - 1;
    out->slots = calloc(slots, sizeof *out->slots);
    if (out->slots == NULL)
        return -ENOMEM;
    const struct record *record;
    for (uint64_t at = 0; (record = next(map, used, &at)) != NULL;)
        *slot_of(out, record) = record;
    return 0;
}

/* ---- areas ---- */

static int map_area(qf_journal *journal, const struct area *area, char **out)
{
    void *map = mmap(NULL, area->size, PROT_READ | PROT_WRITE, MAP_SHARED, journal->fd,
                     (off_t)area->off);
    if (map == MAP_FAILED)
        return -errno;
    *out = map;
    return 0;
}

/* An area whose memory is there: a write to it cannot fail later. */
static int new_area(qf_journal *journal, struct area *area, uint64_t off, uint64_t size,
                    char **map)
{
    if (size > AREA_MAX)
        return -EFBIG;
    if (fallocate(journal->fd, 0, (off_t)off, (off_t)size) != 0)
        return -errno;
    area->off = off;
    area->size = size;
    atomic_store(&area->used, 0);
    return map_area(journal, area, map);
}

static void copy_record(char *map, struct area *area, const struct record *record)
{
    uint64_t used = atomic_load(&area->used), room = room_of(record->size);
    memcpy(map + used, record, sizeof *record + record->size);
    atomic_store(&area->used, used + room);
}

/* Moves what counts to a new area with room for `more` bytes besides. */
static int compact(qf_journal *journal, uint64_t more)
{
    const struct area *old = area_of(journal);
    uint64_t used = atomic_load(&old->used), live = 0;
    struct index index;
    int rc = make_index(journal->map, used, &index);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i <= index.mask; i++)
        if (index.slots[i] != NULL && index.slots[i]->size != GONE)
            live += room_of(index.slots[i]->size);
    uint64_t size = AREA_GROW * (live + more);
    size = size < AREA_MIN ? AREA_MIN : (size + PAGE - 1) / PAGE * PAGE;
    uint64_t number = atomic_load(&journal->header->current) + 1;
    struct area *area = &journal->header->areas[number % 2];
    char *map;
    rc = new_area(journal, area, old->off + old->size, size, &map);
    if (rc == 0) {
        for (size_t i = 0; i <= index.mask; i++)
            if (index.slots[i] != NULL && index.slots[i]->size != GONE)
                copy_record(map, area, index.slots[i]);
        atomic_store(&journal->header->current, number);
        munmap(journal->map, journal->map_size);
        journal->map = map;
        journal->map_size = size;
        if (fallocate(journal->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)old->off, (off_t)old->size) != 0)
            qf_log(QF_LOG_DEBUG, "journal: %s", strerror(errno));
    }
    free(index.slots);
    return rc;
}

/* ---- records ---- */

static void append(qf_journal *journal, const struct record *head, const void *data)
{
    pthread_mutex_lock(&journal->lock);
    if (atomic_load(&journal->header->ended) == 0) {
        uint64_t room = room_of(data_size_of(head));
        struct area *area = area_of(journal);
        int rc =
            area->size - atomic_load(&area->used) < room ? compact(journal, room) : 0;
        if (rc == 0) {
            area = area_of(journal);
            uint64_t used = atomic_load(&area->used);
            memcpy(journal->map + used, head, sizeof *head);
            if (data != NULL)
                memcpy(journal->map + used + sizeof *head, data, head->size);
            atomic_store(&area->used, used + room);
        } else {
            atomic_store(&journal->header->ended, 1);
            qf_log(QF_LOG_WARN, "this mount will not outlive its daemon: journal: %s",
                   strerror(-rc));
        }
    }
    pthread_mutex_unlock(&journal->lock);
}

void qf_journal_set(qf_journal *journal, uint32_t kind, uint64_t key, const void *data,
                    size_t size)
{
    assert(size < GONE);
    const struct record head = {(uint32_t)size, kind, key};
    append(journal, &head, data);
}

void qf_journal_delete(qf_journal *journal, uint32_t kind, uint64_t key)
{
    const struct record head = {GONE, kind, key};
    append(journal, &head, NULL);
}

int qf_journal_each(qf_journal *journal, uint32_t kind,
                    int (*each)(void *arg, uint64_t key, const void *data, size_t size),
                    void *arg)
{
    struct index index = {NULL, 0};
    uint64_t used = atomic_load(&area_of(journal)->used);
    int rc = make_index(journal->map, used, &index);
    for (size_t i = 0; rc == 0 && i <= index.mask; i++) {
        const struct record *record = index.slots[i];
        if (record != NULL && record->kind == kind && record->size != GONE)
            rc = each(arg, record->key, record + 1, record->size);
    }
    free(index.slots);
    return rc;
}

void qf_journal_end(qf_journal *journal)
{
    atomic_store(&journal->header->ended, 1);
}

/* ---- from beginning to end ---- */

static int start(qf_journal *journal, bool fresh)
{
    pthread_mutex_init(&journal->lock, NULL);
    void *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, journal->fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    journal->header = map;
    struct area *area = area_of(journal);
    int rc;
    if (fresh) {
        rc = new_area(journal, area, PAGE, AREA_MIN, &journal->map);
        journal->header->magic = MAGIC;
    } else {
        struct stat st;
        bool good = fstat(journal->fd, &st) == 0 && journal->header->magic == MAGIC &&
                    atomic_load(&journal->header->ended) == 0 && area->off >= PAGE &&
                    area->off % PAGE == 0 && area->size != 0 &&
                    area->size <= AREA_MAX && area->off <= (uint64_t)st.st_size &&
                    area->size <= (uint64_t)st.st_size - area->off &&
                    atomic_load(&area->used) <= area->size;
        rc = good ? map_area(journal, area, &journal->map) : -EBADMSG;
    }
    if (rc == 0)
        journal->map_size = area->size;
    return rc;
}

static int new_journal(int fd, bool fresh, qf_journal **out)
{
    qf_journal *journal = calloc(1, sizeof *journal);
    if (journal == NULL) {
        close(fd);
        return -ENOMEM;
    }
    journal->fd = fd;
    int rc = start(journal, fresh);
    if (rc != 0) {
        qf_journal_close(journal);
        return rc;
    }
    *out = journal;
    return 0;
}

int qf_journal_new(qf_journal **out)
{
    int fd = memfd_create("quantfs-journal", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fallocate(fd, 0, 0, (off_t)PAGE) != 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return new_journal(fd, true, out);
}

int qf_journal_open(int fd, qf_journal **out)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || (size_t)st.st_size < PAGE) {
        close(fd);
        return -EBADMSG;
    }
    return new_journal(fd, false, out);
}

void qf_journal_close(qf_journal *journal)
{
    if (journal == NULL)
        return;
    if (journal->map != NULL)
        munmap(journal->map, journal->map_size);
    if (journal->header != NULL)
        munmap(journal->header, PAGE);
    pthread_mutex_destroy(&journal->lock);
    close(journal->fd);
    free(journal);
}

int qf_journal_fd(const qf_journal *journal)
{
    return journal->fd;
}
