/* SPDX-License-Identifier: Apache-2.0 */
/* What passthrough takes of the kernel's protocol, for a libfuse that does not know it
 * (before 3.17). Knows nothing of libfuse either: the numbers are those of
 * include/uapi/linux/fuse.h, protocol 7.40 (Linux 6.9). */
#ifndef QF_FS_FUSE_WIRE_H
#define QF_FS_FUSE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_WIRE_BODY_MAX 256

/* A reply as it is sent instead of the one that libfuse made. */
struct qf_wire_reply {
    struct iovec iov[2];
    unsigned char body[QF_WIRE_BODY_MAX];
};

#define QF_WIRE_OPEN    14u
#define QF_WIRE_OPENDIR 27u

/* A request's opcode; 0: it is none. */
uint32_t qf_wire_opcode(const void *request, size_t size);
/* The errno (not negative) that a reply carries; 0: none, or it is no reply. */
int qf_wire_reply_error(const struct iovec *iov, int count);
/* Its number, and whether it was sent before, to a daemon that did not answer it. 0: it
 * is none. */
uint64_t qf_wire_unique(const void *request, size_t size, bool *again);

/* What the kernel offers in a request to INIT. */
struct qf_wire_offer {
    bool passthrough;
    bool resend; /* sends requests again: qf_wire_resend */
};
/* Whether this is a request to INIT. */
bool qf_wire_is_init(const void *request, size_t size, struct qf_wire_offer *offer);
/* Whether a reply to INIT (header and body in one) has asked for passthrough. */
bool qf_wire_asks_passthrough(const void *reply, size_t size);
/* The notification after which the kernel sends all requests again that it has sent and
 * that nobody has answered. */
#define QF_WIRE_NOTIFY_SIZE 16
void qf_wire_resend(unsigned char out[QF_WIRE_NOTIFY_SIZE]);
/* The reply to INIT that asks for passthrough. False: it is no such reply (an error, or
 * of a layout without room for it), and must be sent as it is. */
bool qf_wire_patch_init(const struct iovec *iov, int count, struct qf_wire_reply *out);
/* The reply to OPEN that names a backing file. False: as above. */
bool qf_wire_patch_open(const struct iovec *iov, int count, int backing,
                        struct qf_wire_reply *out);

/* Makes a file known to the connection `device` belongs to: an id > 0 or -errno. */
int qf_wire_backing_open(int device, int fd) QF_MUST_CHECK;
void qf_wire_backing_close(int device, int id);

#ifdef __cplusplus
}
#endif
#endif
