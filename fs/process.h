/* SPDX-License-Identifier: Apache-2.0 */
/* Going into the background with the start's errors at the prompt: the parent waits
 * until the child says that the mount is up, or why it is not. */
#ifndef QF_FS_PROCESS_H
#define QF_FS_PROCESS_H

#include <stdbool.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Exit codes, those of mount(8). */
#define QF_EXIT_OK     0
#define QF_EXIT_USAGE  1
#define QF_EXIT_SYSTEM 2
#define QF_EXIT_MOUNT  32
/* The mount goes on with the next daemon (EX_TEMPFAIL; RestartForceExitStatus=). */
#define QF_EXIT_RESTART 75

struct qf_process {
    int status_fd; /* -1: in the foreground */
};

/* Forks unless `foreground`. Returns in the child (or in the foreground process); the
 * parent prints the child's sentence, if any, and exits with its code. */
int qf_process_start(bool foreground, struct qf_process *out,
                     struct qf_err *err) QF_MUST_CHECK;
/* The mount is up: the parent exits with QF_EXIT_OK, our standard descriptors go to
 * /dev/null and the log to syslog. */
void qf_process_ready(struct qf_process *process);
/* Holds on to no terminal and no directory: the second half of the above. */
void qf_process_detach(void);
/* It will not come up: the parent prints the sentence ("": somebody has said it) and
 * exits with `code`. In the foreground the sentence is printed here. */
void qf_process_failed(struct qf_process *process, int code, const char *sentence);

#ifdef __cplusplus
}
#endif
#endif
