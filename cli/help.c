/* SPDX-License-Identifier: Apache-2.0 */
/* --help out of the tables. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "fs/opts.h"

#define WIDTH     80
#define HEAD_MAX  26 /* longer ones have a line of their own */
#define HEAD_SIZE 128

static const struct {
    const char *word, *kind;
} kinds[] = {
    {"DIR", "dir"},    {"STORE", "dir"},   {"MNT", "dir"},
    {"FILE", "file"},  {"PATH", "file"},   {"NAME", "none"},
    {"VIEW", "view"},  {"A:B", "views"},   {"LIST", "mount-options"},
    {"N", "none"},     {"SIZE", "none"},   {"SECONDS", "none"},
    {"KIB", "none"},   {"AGE", "none"},    {"PATTERN", "none"},
    {"MODEL", "none"}, {"LOADER", "none"},
};

const char *qf_cli_kind(const char *word)
{
    if (strchr(word, '|') != NULL)
        return "choice";
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].word, word) == 0)
            return kinds[i].kind;
    return NULL;
}

int qf_cli_print(struct qf_buf *text)
{
    char *whole = qf_buf_take(text, NULL);
    if (whole == NULL)
        return QF_CLI_FAILED;
    int rc = fputs(whole, stdout) >= 0 && fflush(stdout) == 0;
    free(whole);
    return rc ? QF_CLI_OK : QF_CLI_FAILED;
}

/* ---- layout ---- */

/* Characters, not bytes. */
static size_t columns(const char *text, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += ((unsigned char)text[i] & 0xC0) != 0x80;
    return n;
}

/* Words of text from column *at on, broken before `width`, later lines indented. */
static void wrap(const char *text, size_t indent, size_t *at, size_t width,
                 struct qf_buf *out)
{
    bool first = true;
    while (*text != '\0') {
        size_t size = strcspn(text, " ");
        size_t wide = columns(text, size);
        if (!first && *at + 1 + wide > width) {
            qf_buf_append_str(out, "\n");
            qf_buf_append_fill(out, ' ', indent);
            *at = indent;
        } else if (!first) {
            qf_buf_append_str(out, " ");
            *at += 1;
        }
        qf_buf_append(out, text, size);
        *at += wide;
        first = false;
        text += size + (text[size] == ' ');
    }
}

static void append_wrapped(const char *text, size_t indent, size_t at,
                           struct qf_buf *out)
{
    wrap(text, indent, &at, WIDTH, out);
    qf_buf_append_str(out, "\n");
}

/* One piece of a synopsis, never broken. */
static void append_piece(const char *piece, size_t indent, size_t *at, size_t width,
                         struct qf_buf *out)
{
    size_t wide = columns(piece, strlen(piece));
    bool breaks = *at + 1 + wide > width;
    if (breaks)
        qf_buf_append_str(out, "\n");
    qf_buf_append_fill(out, ' ', breaks ? indent : 1);
    qf_buf_append_str(out, piece);
    *at = (breaks ? indent : *at + 1) + wide;
}

void qf_cli_synopsis(const struct qf_cli_command *command, size_t indent, size_t width,
                     struct qf_buf *out)
{
    char piece[128];
    size_t at = indent + strlen("quantfs ") + strlen(command->name);
    size_t later = at + 1;
    qf_buf_appendf(out, "quantfs %s", command->name);
    for (const struct qf_cli_option *o = command->options; o != NULL && o->name != NULL;
         o++) {
        char letter[2] = {o->letter ? o->id : '\0', '\0'};
        snprintf(piece, sizeof piece, "[%s%s%s%s]%s", o->letter ? "-" : "--",
                 o->letter ? letter : o->name, o->value != NULL ? " " : "",
                 o->value != NULL ? o->value : "", o->repeats ? "…" : "");
        append_piece(piece, later, &at, width, out);
    }
    for (const struct qf_cli_operand *o = command->operands;
         o != NULL && o->word != NULL; o++) {
        snprintf(piece, sizeof piece, "%s%s", o->word, o->repeats ? "…" : "");
        append_piece(piece, later, &at, width, out);
    }
}

/* ---- --help ---- */

static void append_usage(const struct qf_cli_command *command, const char *lead,
                         struct qf_buf *out)
{
    qf_buf_append_str(out, lead);
    qf_cli_synopsis(command, strlen("usage: "), WIDTH, out);
    qf_buf_append_str(out, "\n");
}

static void append_row(const char *head, size_t at, const char *help,
                       struct qf_buf *out)
{
    size_t wide = columns(head, strlen(head));
    qf_buf_append_str(out, head);
    if (wide + 2 > at)
        qf_buf_append_str(out, "\n");
    qf_buf_append_fill(out, ' ', wide + 2 > at ? at : at - wide);
    append_wrapped(help, at, at, out);
}

static void head_of(const struct qf_cli_option *o, char head[HEAD_SIZE])
{
    char letter[5] = "    ";
    if (o->letter)
        snprintf(letter, sizeof letter, "-%c, ", o->id);
    snprintf(head, HEAD_SIZE, "  %s--%s%s%s", letter, o->name,
             o->value != NULL ? " " : "", o->value != NULL ? o->value : "");
}

static void append_options(const struct qf_cli_option *options, struct qf_buf *out)
{
    size_t widest = 0;
    char head[HEAD_SIZE];
    for (const struct qf_cli_option *o = options; o->name != NULL; o++) {
        head_of(o, head);
        size_t wide = columns(head, strlen(head));
        if (wide > widest && wide <= HEAD_MAX)
            widest = wide;
    }
    for (const struct qf_cli_option *o = options; o->name != NULL; o++) {
        head_of(o, head);
        append_row(head, widest + 2, o->help, out);
    }
    qf_buf_append_str(out, "\n");
}

static void append_mount_options(struct qf_buf *out)
{
    size_t count;
    const struct qf_mount_option *options = qf_mount_option_list(&count);
    qf_buf_append_str(out, "mount options:\n");
    for (size_t i = 0; i < count; i++) {
        char head[HEAD_SIZE];
        snprintf(head, sizeof head, "  %s%s%s", options[i].name,
                 options[i].value != NULL ? "=" : "",
                 options[i].value != NULL ? options[i].value : "");
        append_row(head, HEAD_MAX, options[i].help, out);
    }
    qf_buf_append_str(out, "\n");
    append_wrapped("The usual options of mount(8) and fstab are taken too.", 0, 0, out);
    qf_buf_append_str(out, "\n");
}

static void append_subcommands(const struct qf_cli_command *command, struct qf_buf *out)
{
    const char *lead = "usage: ";
    for (const struct qf_cli_command *s = command->subcommands; s->name != NULL; s++) {
        append_usage(s, lead, out);
        lead = "       ";
    }
    qf_buf_append_str(out, "\n");
    append_wrapped(command->about, 0, 0, out);
    qf_buf_append_str(out, "\n");
    for (const struct qf_cli_command *s = command->subcommands; s->name != NULL; s++) {
        char head[HEAD_SIZE];
        snprintf(head, sizeof head, "  %s", strrchr(s->name, ' ') + 1);
        append_row(head, 12, s->summary, out);
    }
    qf_buf_appendf(out, "\nquantfs %s COMMAND --help tells more.\n", command->name);
}

static void append_exits(const struct qf_cli_exit *exits, struct qf_buf *out)
{
    struct qf_buf line = {0};
    qf_buf_append_str(&line, "exit codes:");
    for (const struct qf_cli_exit *e = exits; e->code != NULL; e++)
        qf_buf_appendf(&line, "%s %s %s", e != exits ? "," : "", e->code, e->meaning);
    char *text = qf_buf_take(&line, NULL);
    if (text == NULL)
        out->failed = true;
    else
        append_wrapped(text, strlen("exit codes: "), 0, out);
    free(text);
}

static void append_paragraphs(const char *about, struct qf_buf *out)
{
    char *copy = strdup(about), *rest = copy;
    if (copy == NULL)
        out->failed = true;
    while (rest != NULL) {
        append_wrapped(strsep(&rest, "\n"), 0, 0, out);
        qf_buf_append_str(out, "\n");
    }
    free(copy);
}

void qf_cli_help(const struct qf_cli_command *command, struct qf_buf *out)
{
    if (command->subcommands != NULL) {
        append_subcommands(command, out);
        return;
    }
    append_usage(command, "usage: ", out);
    qf_buf_append_str(out, "\n");
    append_paragraphs(command->about, out);
    if (command->options != NULL)
        append_options(command->options, out);
    if (command->tells_mount_options)
        append_mount_options(out);
    append_exits(command->exits, out);
}
