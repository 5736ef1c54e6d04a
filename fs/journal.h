/* SPDX-License-Identifier: Apache-2.0 */
/* What the next daemon of a mount must know when this one is killed: records by kind
 * and key, in a memory file that outlives us. A record is there whole or not at all,
 * whenever the process ends. All calls are thread-safe. */
#ifndef QF_FS_JOURNAL_H
#define QF_FS_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_journal qf_journal;

/* Kinds of records, and their keys. */
enum {
    QF_JOURNAL_INIT_REQUEST = 1, /* 0 */
    QF_JOURNAL_INIT_REPLY,       /* 0 */
    QF_JOURNAL_NODE,             /* the node's id */
    QF_JOURNAL_OPEN,             /* fh */
    QF_JOURNAL_TEXT,             /* fh, of a file that is made at its open */
    QF_JOURNAL_DAEMON,           /* 0; how many have gone on from it */
    QF_JOURNAL_DEVICE,           /* 0; the mount's, as text */
};

int qf_journal_new(qf_journal **out) QF_MUST_CHECK;
/* The journal of a process that has ended; takes `fd`, also on failure. -EBADMSG: it is
 * none, is of another version, or that process could not keep it up. */
int qf_journal_open(int fd, qf_journal **out) QF_MUST_CHECK;
/* The file itself stays as long as somebody has its descriptor. NULL is allowed. */
void qf_journal_close(qf_journal *journal);
/* Borrowed. */
int qf_journal_fd(const qf_journal *journal);

/* In place of what is there under kind and key. Without memory the journal is of no use
 * to anybody from then on, and says so in the log. */
void qf_journal_set(qf_journal *journal, uint32_t kind, uint64_t key, const void *data,
                    size_t size);
void qf_journal_delete(qf_journal *journal, uint32_t kind, uint64_t key);
/* The records of one kind, in no order, until `each` returns non-zero, which is then
 * returned. Nobody may change the journal meanwhile; data is 8-byte aligned. -EBADMSG:
 * what is there is no journal's. */
int qf_journal_each(qf_journal *journal, uint32_t kind,
                    int (*each)(void *arg, uint64_t key, const void *data, size_t size),
                    void *arg) QF_MUST_CHECK;
/* Nobody shall go on from it. */
void qf_journal_end(qf_journal *journal);

#ifdef __cplusplus
}
#endif
#endif
