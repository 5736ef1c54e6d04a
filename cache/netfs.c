/* SPDX-License-Identifier: Apache-2.0 */
/* A list of what is refused, not of what is allowed: a new local filesystem should just
 * work. The numbers are those of linux/magic.h and of the out-of-tree clients. */
#include "cache/netfs.h"

#include <stddef.h>

static const struct {
    uint32_t type;
    const char *name;
} remote[] = {
    {0x00006969, "NFS"},    {0x0000517b, "SMB"},
    {0xff534d42, "CIFS"},   {0xfe534d42, "SMB"},
    {0x0bd00bd0, "Lustre"}, {0x01021997, "9P"},
    {0x5346414f, "AFS"},    {0x6b414653, "AFS"},
    {0x00c36400, "Ceph"},   {0x65735546, "FUSE"},
    {0x73757245, "Coda"},   {0x0000564c, "NCP"},
    {0x47504653, "GPFS"},   {0x7461636f, "OCFS2"},
    {0x01161970, "GFS2"},   {0x20030528, "OrangeFS"},
    {0x19830326, "BeeGFS"}, {0xaad7aaea, "PanFS"},
    {0x786f4256, "vboxsf"}, {0xbacbacbc, "VMware shared folders"},
    {0x013111a8, "IBRIX"},  {0xa501fcf5, "VxFS"},
};

const char *qf_netfs_name(uint32_t type)
{
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++) {
        if (remote[i].type == type)
            return remote[i].name;
    }
    return NULL;
}
