/* SPDX-License-Identifier: Apache-2.0 */
/* Which open files the kernel reads without us. It takes an inode in one mode at a
 * time: all opens of it are cached (reads come to us), or all pass through to one
 * backing file. The first open decides; an inode that is open in cached mode stays so
 * until its last release. Knows nothing of libfuse. All calls are thread-safe.
 *
 * A reader in passthrough mode reads the sealed file as it was when it was opened:
 * eviction of that file does not matter to it, and neither does a change of the source.
 * It sees the old version whole until the kernel learns of the new one (the next open
 * or look-up by name); its reads then end in EIO, what it has mapped stays. */
#ifndef QF_FS_PASSTHROUGH_H
#define QF_FS_PASSTHROUGH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_passthrough qf_passthrough;

/* How backing files are told to the kernel. */
struct qf_passthrough_device {
    int (*open)(void *arg, int fd); /* a backing id (> 0) or -errno */
    void (*close)(void *arg, int id);
    void *arg;
};

/* It is off until qf_passthrough_start. switched(arg, on) is called, by one thread at a
 * time, when it begins to work and when it turns out not to work after all. */
int qf_passthrough_new(void (*switched)(void *arg, bool on), void *arg,
                       qf_passthrough **out) QF_MUST_CHECK;
/* Forgets what is still open. NULL is allowed. */
void qf_passthrough_free(qf_passthrough *pt);
/* Off for good. `why` stands in the status. */
void qf_passthrough_off(qf_passthrough *pt, const char *why);
/* Whether there is any use in asking the kernel for it. */
bool qf_passthrough_wanted(qf_passthrough *pt);
/* The kernel is being told that we want it. Requests can come before we know whether it
 * works: opens and the description wait until qf_passthrough_start or _off. */
void qf_passthrough_ask(qf_passthrough *pt);
/* The kernel has agreed: tries the device once, and is on or off for good. */
void qf_passthrough_start(qf_passthrough *pt,
                          const struct qf_passthrough_device *device);

/* Before the start: there was a daemon before this one. Backing files that it told the
 * kernel of and that belong to no inode of qf_passthrough_restore are closed then. */
void qf_passthrough_resume(qf_passthrough *pt);
/* After that: an inode that the kernel was told to be open, in this mode (a backing id,
 * or 0). */
int qf_passthrough_restore(qf_passthrough *pt, uint64_t node, uint64_t generation,
                           int backing) QF_MUST_CHECK;

/* An open of an inode, whose sealed file is `fd` (-1: there is none). Returns the
 * backing id to reply with, 0 for cached mode, or -ENOMEM: then the open must fail.
 * Each success is ended by one release. */
int qf_passthrough_open(qf_passthrough *pt, uint64_t node, uint64_t generation, int fd);
void qf_passthrough_release(qf_passthrough *pt, uint64_t node, uint64_t generation);

/* "on", or "off (why)". */
void qf_passthrough_describe(qf_passthrough *pt, struct qf_buf *out);
/* Opens in passthrough mode so far. */
uint64_t qf_passthrough_opens(qf_passthrough *pt);

#ifdef __cplusplus
}
#endif
#endif
