/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper: a small process that holds the mount's descriptors and starts the daemon
 * again when it dies. To the daemon it is what systemd is, by the same protocol
 * (base/notify.h): -o restart=systemd needs no more of systemd than this does. */
#ifndef QF_FS_KEEPER_H
#define QF_FS_KEEPER_H

#include <stdbool.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_keeper_options {
    const char *program;      /* absolute */
    char *const *argv;        /* of the daemon */
    const char *mountpoint;   /* absolute; unmounted when there will be no daemon */
    void (*ready)(void *arg); /* called once, when the first daemon has mounted */
    void *arg;
};

/* Daemons that fail one after the other before the keeper gives up. */
#define QF_KEEPER_FAILURES_MAX 5
/* A daemon that lives longer has not failed at its start. */
#define QF_KEEPER_QUICK_MS 5000

/* How long to wait before the next daemon after so many failures in a row. */
int qf_keeper_delay_ms(unsigned failures);

/* Returns the exit code of the whole: that of the last daemon. Signals must be blocked
 * (qf_signals_block); SIGTERM and SIGINT end the daemon and then the keeper, whatever
 * came before; SIGHUP, SIGUSR1 and SIGUSR2 go to the daemon. */
int qf_keeper_run(const struct qf_keeper_options *options) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
