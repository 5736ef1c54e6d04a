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

/* A request's opcode; 0: it is none. */
uint32_t qf_wire_opcode(const void *request, size_t size);
/* The errno (not negative) that a reply carries; 0: none, or it is no reply. */
int qf_wire_reply_error(const struct iovec *iov, int count);
/* Whether this is a request to INIT, and then whether the kernel offers passthrough. */
bool qf_wire_is_init(const void *request, size_t size, bool *offered);
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
