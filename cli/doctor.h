/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine can do for a mount: `quantfs doctor`. */
#ifndef QF_CLI_DOCTOR_H
#define QF_CLI_DOCTOR_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum qf_finding_level {
    QF_FINDING_OK,
    QF_FINDING_NOTE, /* works, with less speed or fewer possibilities */
    QF_FINDING_WARN, /* will be trouble */
    QF_FINDING_FAIL, /* nothing can be mounted */
};

struct qf_finding {
    const char *name; /* stable: scripts look for it */
    enum qf_finding_level level;
    char text[512]; /* what was found */
    char mend[256]; /* what to do; "": nothing */
};

/* The order in which they are told. */
#define QF_FINDING_COUNT 12

const char *qf_finding_level_name(enum qf_finding_level level);
/* Looks at everything and changes nothing. cache_dir: the one asked for, or NULL: the
 * default one. cuda_problem: why the first GPU cannot be used, or NULL. */
void qf_doctor_examine(const char *cache_dir, const char *cuda_problem,
                       struct qf_finding findings[QF_FINDING_COUNT]);

#ifdef __cplusplus
}
#endif
#endif
