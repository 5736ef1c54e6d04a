/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const struct command {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"mount", "mount STORE on MNT, its views as directories", qf_cmd_mount},
    {"umount", "unmount MNT and wait until its daemon has ended", qf_cmd_umount},
    {"info", "tell what a model becomes in each view, and why", qf_cmd_info},
    {"check", "tell which loaders take a view of a model, and why not", qf_cmd_check},
    {"diff", "tell what views cost a model: errors and sizes", qf_cmd_diff},
    {"cache", "see and steer a cache: stat, verify, prune, pin", qf_cmd_cache},
    {"warm", "encode ahead what lies at a path, into the cache", qf_cmd_warm},
    {"export", "write a view of a model as a repository to publish", qf_cmd_export},
    {"verify", "compare a quantized checkpoint with its source", qf_cmd_verify},
    {"doctor", "tell what this machine can do, and what is in the way", qf_cmd_doctor},
    {"demo", "write a small random model to try things with", qf_cmd_demo},
};

static void print_help(FILE *out)
{
    fputs("usage: quantfs COMMAND [ARGUMENTS]\n"
          "\n"
          "Shows a store of models (safetensors) as bitsandbytes would have quantized\n"
          "them: nf4, int8, dq (nested nf4) and fp4, encoded when they are read.\n"
          "\n"
          "commands:\n",
          out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
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

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return QF_CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 ||
        strcmp(name, "help") == 0) {
        print_help(stdout);
        return QF_CLI_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("quantfs %s\n", QUANTFS_VERSION);
        return QF_CLI_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "quantfs: unknown command '%s'\n\n", name);
    print_help(stderr);
    return QF_CLI_USAGE;
}
