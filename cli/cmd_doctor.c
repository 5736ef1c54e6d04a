/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "cli/cli.h"
#include "cli/doctor.h"
#include "cuda/cuda_backend.h"

static void print_text(const struct qf_finding *findings)
{
    for (size_t i = 0; i < QF_FINDING_COUNT; i++) {
        const struct qf_finding *f = &findings[i];
        printf("%-5s %-12s %s\n", qf_finding_level_name(f->level), f->name, f->text);
        if (f->mend[0] != '\0')
            printf("%18s -> %s\n", "", f->mend);
    }
}

static void append_member(struct qf_buf *out, const char *name, const char *text)
{
    qf_buf_appendf(out, "%s\"%s\": ", name[0] == 'n' ? "" : ", ", name);
    qf_buf_append_json(out, text, strlen(text));
}

static int print_json(const struct qf_finding *findings)
{
    struct qf_buf out = {0};
    qf_buf_append_str(&out, "{\"findings\": [");
    for (size_t i = 0; i < QF_FINDING_COUNT; i++) {
        qf_buf_append_str(&out, i != 0 ? ",\n  {" : "\n  {");
        append_member(&out, "name", findings[i].name);
        append_member(&out, "level", qf_finding_level_name(findings[i].level));
        append_member(&out, "text", findings[i].text);
        append_member(&out, "mend", findings[i].mend);
        qf_buf_append_str(&out, "}");
    }
    qf_buf_append_str(&out, "\n]}\n");
    char *text = qf_buf_take(&out, NULL);
    if (text == NULL)
        return -ENOMEM;
    fputs(text, stdout);
    free(text);
    return 0;
}

/* Why the first GPU cannot be used; NULL: it can. */
static const char *cuda_problem(struct qf_err *err)
{
    struct qf_cuda_options options = {0};
    qf_backend *cpu = NULL, *gpu = NULL;
    int rc = qf_cpu_backend_open(NULL, &cpu, err);
    if (rc == 0)
        rc = qf_cuda_backend_open(&options, cpu, &gpu, err);
    qf_backend_close(gpu);
    qf_backend_close(cpu);
    return rc == 0 ? NULL : err->text;
}

struct arguments {
    const char *cache;
    bool json;
};

static int take(void *arg, char id, const char *value)
{
    struct arguments *a = arg;
    if (id == 'j')
        a->json = true;
    else
        a->cache = value;
    return 0;
}

static int doctor(const struct qf_cli_command *self, int argc, char **argv)
{
    struct arguments a = {0};
    struct qf_cli_line line;
    int code = qf_cli_parse(self, argc, argv, take, &a, &line);
    if (code >= 0)
        return code;
    static struct qf_finding findings[QF_FINDING_COUNT];
    struct qf_err err = {""};
    qf_doctor_examine(a.cache, cuda_problem(&err), findings);
    if (!a.json)
        print_text(findings);
    else if (print_json(findings) != 0)
        return QF_CLI_FAILED;
    for (size_t i = 0; i < QF_FINDING_COUNT; i++)
        if (findings[i].level == QF_FINDING_FAIL)
            return QF_CLI_FAILED;
    return QF_CLI_OK;
}

static const struct qf_cli_option options[] = {
    {.id = 'j', .name = "json", .help = "one JSON document"},
    {.id = 'c',
     .name = "cache",
     .value = "DIR",
     .help = "examine this directory, not the default one"},
    {0},
};

const struct qf_cli_command qf_cmd_doctor = {
    .name = "doctor",
    .summary = "tell what this machine can do, and what is in the way",
    .about = "Tells what this machine can do for a mount, what is in the way, and the "
             "command that mends it. Looks only; changes nothing.",
    .options = options,
    .exits = (const struct qf_cli_exit[]){{"0", "a store can be mounted"},
                                          {"1", "usage"},
                                          {"2", "nothing can be mounted"},
                                          {0}},
    .run = doctor,
};
