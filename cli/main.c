/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const struct qf_cli_command *const commands[] = {
    &qf_cmd_mount, &qf_cmd_umount, &qf_cmd_info,   &qf_cmd_check,  &qf_cmd_diff,
    &qf_cmd_cache, &qf_cmd_warm,   &qf_cmd_export, &qf_cmd_verify, &qf_cmd_doctor,
    &qf_cmd_bench, &qf_cmd_demo,   NULL,
};

static void print_help(FILE *out)
{
    fputs(
        "usage: quantfs COMMAND [ARGUMENTS]\n"
        "\n"
        "Shows a store of models (safetensors) as bitsandbytes would have quantized\n"
        "them: nf4, int8, dq (nested nf4) and fp4, encoded when they are read. Views\n"
        "that are not listed are there all the same: ao-int8wo, ao-int8dq, "
        "ao-float8wo,\n"
        "ao-float8wo-e5m2, ao-float8dq-row (TorchAO), fp8, ct-fp8, ct-w8a8, ct-w8a16,\n"
        "ct-w4a16 (compressed-tensors).\n"
        "\n"
        "commands:\n",
        out);
    for (size_t i = 0; commands[i] != NULL; i++)
        fprintf(out, "  %-8s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n"
          "quantfs COMMAND --help tells more; quantfs --version prints the version.\n",
          out);
}

int qf_cli_usage_error(const char *command, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "quantfs %s: ", command);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nquantfs %s --help tells how it is used.\n", command);
    va_end(args);
    return QF_CLI_USAGE;
}

int qf_cli_number(const char *command, const char *option, const char *text,
                  unsigned max, unsigned *out)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || number == 0 ||
        number > max)
        return qf_cli_usage_error(command, "%s %s: not a number from 1 to %u", option,
                                  text, max);
    *out = (unsigned)number;
    return 0;
}

static atomic_int stop;

static void on_signal(int number)
{
    atomic_store(&stop, number);
}

const atomic_int *qf_cli_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal,
                               .sa_flags = (int)(SA_RESTART | SA_RESETHAND)};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return &stop;
}

static const struct qf_cli_command *find(const char *name)
{
    for (size_t i = 0; commands[i] != NULL; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    fprintf(stderr, "quantfs: unknown command '%s'\n\n", name);
    print_help(stderr);
    return NULL;
}

/* quantfs help [COMMAND]; --dump is for programs. */
static int help(int argc, char **argv)
{
    struct qf_buf text = {0};
    if (argc < 2) {
        print_help(stdout);
        return QF_CLI_OK;
    }
    if (strcmp(argv[1], "--dump") == 0) {
        qf_cli_dump(commands, &text);
        return qf_cli_print(&text);
    }
    const struct qf_cli_command *command = find(argv[1]);
    if (command == NULL)
        return QF_CLI_USAGE;
    qf_cli_help(command, &text);
    return qf_cli_print(&text);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return QF_CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 ||
        strcmp(name, "help") == 0)
        return help(name[0] == '-' ? 1 : argc - 1, argv + 1);
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("quantfs %s\n", QUANTFS_VERSION);
        return QF_CLI_OK;
    }
    const struct qf_cli_command *command = find(name);
    return command != NULL ? command->run(command, argc - 1, argv + 1) : QF_CLI_USAGE;
}
