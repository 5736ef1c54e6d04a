/* SPDX-License-Identifier: Apache-2.0 */
/* Offsets and numbers are written out instead of taken from <linux/fuse.h>, which is
 * older than the kernel on many systems. They are a kernel's ABI and never change. */
#include "fs/fuse_wire.h"

#include <string.h>
#include <sys/ioctl.h>

/* struct fuse_in_header, and struct fuse_init_in behind it */
#define IN_OPCODE      4u
#define IN_UNIQUE      8u
#define IN_HEADER_SIZE 40u
#define IN_FLAGS       (IN_HEADER_SIZE + 12u)
#define IN_FLAGS2      (IN_HEADER_SIZE + 16u)
#define OPCODE_INIT    26u

#define UNIQUE_RESEND  (UINT64_C(1) << 63)
#define NOTIFY_RESEND  7u

/* struct fuse_out_header */
#define OUT_ERROR       4u
#define OUT_HEADER_SIZE 16u

/* struct fuse_init_out */
#define INIT_FLAGS        12u
#define INIT_FLAGS2       32u
#define INIT_STACK_DEPTH  36u
#define INIT_SIZE_MIN     40u

#define FLAG_INIT_EXT     (UINT32_C(1) << 30)
#define FLAG2_RESEND      (UINT32_C(1) << 7) /* bit 39 */
#define FLAG2_PASSTHROUGH (UINT32_C(1) << 5) /* bit 37 of both words */
#define FLAG_WRITEBACK    (UINT32_C(1) << 16)
#define STACK_DEPTH       1u /* backing files lie on no stacked filesystem */

/* struct fuse_open_out */
#define OPEN_FLAGS             8u
#define OPEN_BACKING           12u
#define OPEN_SIZE              16u

#define FOPEN_FLAG_PASSTHROUGH (UINT32_C(1) << 7)

struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define IOC_BACKING_OPEN  _IOW(229, 1, struct backing_map)
#define IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* In the byte order of this machine, as the kernel does. */
static uint32_t load(const void *from, size_t off)
{
    uint32_t value;
    memcpy(&value, (const char *)from + off, sizeof value);
    return value;
}

static void store(void *to, size_t off, uint32_t value)
{
    memcpy((char *)to + off, &value, sizeof value);
}

uint32_t qf_wire_opcode(const void *request, size_t size)
{
    return size >= IN_HEADER_SIZE ? load(request, IN_OPCODE) : 0;
}

int qf_wire_reply_error(const struct iovec *iov, int count)
{
    if (count < 1 || iov[0].iov_len < OUT_HEADER_SIZE)
        return 0;
    int error = (int)load(iov[0].iov_base, OUT_ERROR);
    return error < 0 ? -error : 0;
}

uint64_t qf_wire_unique(const void *request, size_t size, bool *again)
{
    uint64_t unique = 0;
    if (size >= IN_HEADER_SIZE)
        memcpy(&unique, (const char *)request + IN_UNIQUE, sizeof unique);
    *again = (unique & UNIQUE_RESEND) != 0;
    return unique & ~UNIQUE_RESEND;
}

bool qf_wire_is_init(const void *request, size_t size, struct qf_wire_offer *offer)
{
    *offer = (struct qf_wire_offer){false, false};
    if (size < IN_HEADER_SIZE || load(request, IN_OPCODE) != OPCODE_INIT)
        return false;
    if (size >= IN_FLAGS2 + 4 && (load(request, IN_FLAGS) & FLAG_INIT_EXT) != 0) {
        offer->passthrough = (load(request, IN_FLAGS2) & FLAG2_PASSTHROUGH) != 0;
        offer->resend = (load(request, IN_FLAGS2) & FLAG2_RESEND) != 0;
    }
    return true;
}

bool qf_wire_asks_passthrough(const void *reply, size_t size)
{
    if (size < OUT_HEADER_SIZE + INIT_SIZE_MIN)
        return false;
    const char *body = (const char *)reply + OUT_HEADER_SIZE;
    return (load(body, INIT_FLAGS) & FLAG_INIT_EXT) != 0 &&
           (load(body, INIT_FLAGS2) & FLAG2_PASSTHROUGH) != 0;
}

void qf_wire_resend(unsigned char out[QF_WIRE_NOTIFY_SIZE])
{
    memset(out, 0, QF_WIRE_NOTIFY_SIZE);
    store(out, 0, QF_WIRE_NOTIFY_SIZE);
    store(out, OUT_ERROR, NOTIFY_RESEND); /* unique 0: no reply */
}

/* A copy of a successful reply of a header and a body. */
static bool copy_reply(const struct iovec *iov, int count, size_t size_min,
                       struct qf_wire_reply *out)
{
    if (count != 2 || iov[0].iov_len != OUT_HEADER_SIZE ||
        load(iov[0].iov_base, OUT_ERROR) != 0 || iov[1].iov_len < size_min ||
        iov[1].iov_len > sizeof out->body)
        return false;
    memcpy(out->body, iov[1].iov_base, iov[1].iov_len);
    out->iov[0] = iov[0];
    out->iov[1] = (struct iovec){out->body, iov[1].iov_len};
    return true;
}

bool qf_wire_patch_init(const struct iovec *iov, int count, struct qf_wire_reply *out)
{
    if (!copy_reply(iov, count, INIT_SIZE_MIN, out))
        return false;
    uint32_t flags = load(out->body, INIT_FLAGS);
    uint32_t flags2 = (flags & FLAG_INIT_EXT) != 0 ? load(out->body, INIT_FLAGS2) : 0;
    if ((flags & FLAG_WRITEBACK) != 0)
        return false; /* the kernel takes one of the two */
    store(out->body, INIT_FLAGS, flags | FLAG_INIT_EXT);
    store(out->body, INIT_FLAGS2, flags2 | FLAG2_PASSTHROUGH);
    store(out->body, INIT_STACK_DEPTH, STACK_DEPTH);
    return true;
}

bool qf_wire_patch_open(const struct iovec *iov, int count, int backing,
                        struct qf_wire_reply *out)
{
    if (!copy_reply(iov, count, OPEN_SIZE, out) || out->iov[1].iov_len != OPEN_SIZE)
        return false;
    store(out->body, OPEN_FLAGS, FOPEN_FLAG_PASSTHROUGH); /* no other beside it */
    store(out->body, OPEN_BACKING, (uint32_t)backing);
    return true;
}

int qf_wire_backing_open(int device, int fd)
{
    struct backing_map map = {.fd = fd};
    int id = ioctl(device, IOC_BACKING_OPEN, &map);
    if (id > 0)
        return id;
    return id == 0 ? -EIO : -errno;
}

void qf_wire_backing_close(int device, int id)
{
    uint32_t number = (uint32_t)id;
    /* It fails when the connection has ended, which has closed it. */
    (void)ioctl(device, IOC_BACKING_CLOSE, &number);
}
