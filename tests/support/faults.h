/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations and system calls that fail when they are told to, in every thread and in
 * the libraries, too. faults.c stands in front of libc in a program that has it among
 * its sources. AddressSanitizer keeps the allocations to itself, ThreadSanitizer all of
 * it. */
#ifndef QF_TESTS_SUPPORT_FAULTS_H
#define QF_TESTS_SUPPORT_FAULTS_H

#include <errno.h> /* says whose libc it is */
#include <stdbool.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FAULTS_NO_ALLOC 1
#endif
#if __has_feature(thread_sanitizer)
#define FAULTS_MISSING 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FAULTS_NO_ALLOC 1
#endif
#if defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define FAULTS_MISSING 1
#endif

/* Calls, in sets. */
#define FAULT_ALLOC 0x001u /* malloc and its like, whoever calls it */
#define FAULT_OPEN  0x002u /* open, openat, openat2 */
#define FAULT_STAT  0x004u /* fstat, fstatat, fstatfs */
#define FAULT_READ  0x008u /* pread */
#define FAULT_LINK  0x010u /* readlinkat */
#define FAULT_LIST  0x020u /* fdopendir, readdir */
#define FAULT_WRITE 0x040u /* pwrite, writev */
#define FAULT_SYNC  0x080u /* fsync, fdatasync, msync */
#define FAULT_SIZE  0x100u /* ftruncate, posix_fallocate */
#define FAULT_MAP   0x200u /* mmap */
#define FAULT_LOCK  0x400u /* fcntl */
#define FAULT_CLOCK 0x800u /* clock_gettime */

struct faults {
    unsigned calls; /* which are counted */
    int error;      /* errno; 0: READ and WRITE do half of what is asked for */
    bool onwards;   /* all from `at` on, not that one alone */
    long at;        /* the call that fails, from 1; 0: none */
    long jump_s;    /* CLOCK: does not fail but is off by this much */
};

void faults_arm(const struct faults *faults);
/* How many calls were counted. */
long faults_disarm(void);
/* Blocks that are allocated and not freed. */
long faults_live_blocks(void);

#endif
