/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/pool.h"
#include "cli/bench.h"

#define GIGA      1e9
#define TEXT_SIZE 128
#define COLUMN    14

static const enum qf_measured codecs[] = {QF_MEASURE_NF4, QF_MEASURE_FP4, QF_MEASURE_DQ,
                                          QF_MEASURE_INT8};
#define CODECS (sizeof codecs / sizeof *codecs)

struct facts {
    char processor[TEXT_SIZE];
    struct utsname kernel;
};

static void find_facts(struct facts *facts)
{
    char line[2 * TEXT_SIZE];
    bool found = false;
    snprintf(facts->processor, sizeof facts->processor, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (!found && file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        found = colon != NULL && strncmp(line, "model name", 10) == 0;
        if (found)
            snprintf(facts->processor, sizeof facts->processor, "%.*s", TEXT_SIZE - 1,
                     colon + strspn(colon, ": "));
    }
    if (file != NULL)
        fclose(file);
    facts->processor[strcspn(facts->processor, "\n")] = '\0';
    if (uname(&facts->kernel) != 0)
        memset(&facts->kernel, 0, sizeof facts->kernel);
}

static const struct qf_measure_row *find_row(const struct qf_bench_kernels *kernels,
                                             enum qf_measured what, const char *isa)
{
    for (size_t i = 0; i < kernels->count; i++)
        if (kernels->rows[i].what == what && strcmp(kernels->rows[i].isa, isa) == 0)
            return &kernels->rows[i];
    return NULL;
}

/* ---- JSON ---- */

static void append_text(struct qf_buf *out, const char *name, const char *text)
{
    qf_buf_appendf(out, "\"%s\": ", name);
    qf_buf_append_json(out, text, strlen(text));
}

static void machine_json(struct qf_buf *out)
{
    struct facts facts;
    find_facts(&facts);
    qf_buf_append_str(out, " \"machine\": {");
    append_text(out, "processor", facts.processor);
    qf_buf_appendf(out, ", \"cores\": %u, ", qf_cpu_count());
    append_text(out, "kernel", facts.kernel.release);
    qf_buf_append_str(out, ", \"isas\": [");
    for (int i = QF_ISA_SCALAR; i <= (int)qf_isa_detect(); i++)
        qf_buf_appendf(out, "%s\"%s\"", i != QF_ISA_SCALAR ? ", " : "",
                       qf_isa_name((enum qf_isa)i));
    qf_buf_append_str(out, "], ");
    append_text(out, "version", QUANTFS_VERSION);
    qf_buf_append_str(out, "},\n");
}

static void kernels_json(const struct qf_bench *bench, struct qf_buf *out)
{
    const char *comma = "";
    qf_buf_append_str(out, " \"memcpy\": [");
    for (int d = 0; d < QF_FLOAT_COUNT; d++)
        qf_buf_appendf(out, "%s{\"dtype\": \"%s\", \"gb_per_s\": %.3f}",
                       d != 0 ? ", " : "", qf_dtype_name((enum qf_dtype)d),
                       bench->kernels[d].rows[0].rate / GIGA);
    qf_buf_append_str(out, "],\n \"kernels\": [");
    for (int d = 0; d < QF_FLOAT_COUNT; d++)
        for (size_t i = 1; i < bench->kernels[d].count; i++) {
            const struct qf_measure_row *row = &bench->kernels[d].rows[i];
            qf_buf_appendf(out,
                           "%s\n  {\"dtype\": \"%s\", \"codec\": \"%s\", \"isa\": "
                           "\"%s\", \"gb_per_s\": %.4f, \"memcpy_ratio\": %.4f}",
                           comma, qf_dtype_name((enum qf_dtype)d),
                           qf_measured_name(row->what), row->isa, row->rate / GIGA,
                           row->memcpy_ratio);
            comma = ",";
        }
    qf_buf_append_str(out, "],\n");
}

static void pass_json(const char *name, const struct qf_bench_pass *pass,
                      struct qf_buf *out)
{
    qf_buf_appendf(out,
                   ", \"%s\": {\"gb_per_s\": %.4f, \"chunks_encoded\": %" PRIu64
                   ", \"cache_hits\": %" PRIu64 "}",
                   name, pass->rate / GIGA, pass->chunks_encoded, pass->cache_hits);
}

static void row_json(const struct qf_bench_row *row, struct qf_buf *out)
{
    qf_buf_append_str(out, "{");
    append_text(out, "view", row->view);
    qf_buf_append_str(out, ", ");
    append_text(out, "device", row->device);
    pass_json("first", &row->first, out);
    pass_json("second", &row->second, out);
    qf_buf_append_str(out, "}");
}

void qf_bench_json(const struct qf_bench *bench, struct qf_buf *out)
{
    qf_buf_append_str(out, "{\n");
    machine_json(out);
    kernels_json(bench, out);
    qf_buf_appendf(out,
                   " \"source\": {\"bytes\": %" PRIu64 ", \"gb_per_s\": %.3f},\n"
                   " \"engine\": [",
                   bench->source_size, bench->source_rate / GIGA);
    for (size_t i = 0; i < bench->row_count; i++) {
        qf_buf_append_str(out, i != 0 ? ",\n  " : "\n  ");
        row_json(&bench->rows[i], out);
    }
    qf_buf_append_str(out, "],\n \"mount\": ");
    if (bench->mount_problem.text[0] == '\0') {
        row_json(&bench->mount, out);
    } else {
        qf_buf_append_str(out, "{");
        append_text(out, "not_measured", bench->mount_problem.text);
        qf_buf_append_str(out, "}");
    }
    qf_buf_appendf(out, ",\n \"seconds\": %.3f\n}\n", bench->seconds);
}

/* ---- text ---- */

static void machine_text(struct qf_buf *out)
{
    struct facts facts;
    find_facts(&facts);
    qf_buf_appendf(out, "%s, %u processors, Linux %s;", facts.processor, qf_cpu_count(),
                   facts.kernel.release);
    for (int i = QF_ISA_SCALAR; i <= (int)qf_isa_detect(); i++)
        qf_buf_appendf(out, " %s", qf_isa_name((enum qf_isa)i));
    qf_buf_append_str(out, "\n");
}

static void kernels_text(const struct qf_bench *bench, struct qf_buf *out)
{
    qf_buf_append_str(out, "\nkernels: GB/s of source on one thread (ratio to memcpy)\n"
                           "                  ");
    for (size_t c = 0; c < CODECS; c++)
        qf_buf_appendf(out, "%*s", COLUMN, qf_measured_name(codecs[c]));
    qf_buf_append_str(out, "\n");
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        const struct qf_bench_kernels *kernels = &bench->kernels[d];
        const char *dtype = qf_dtype_name((enum qf_dtype)d);
        qf_buf_appendf(out, "  %-6s memcpy   %*.2f\n", dtype, COLUMN - 7,
                       kernels->rows[0].rate / GIGA);
        for (int i = (int)qf_isa_detect(); i >= QF_ISA_SCALAR; i--) {
            const char *isa = qf_isa_name((enum qf_isa)i);
            qf_buf_appendf(out, "  %-6s %-9s", dtype, isa);
            for (size_t c = 0; c < CODECS; c++) {
                const struct qf_measure_row *row = find_row(kernels, codecs[c], isa);
                qf_buf_appendf(out, "%*.2f (%.2f)", COLUMN - 7, row->rate / GIGA,
                               row->memcpy_ratio);
            }
            qf_buf_append_str(out, "\n");
        }
    }
}

static void row_text(const char *what, const struct qf_bench_row *row,
                     struct qf_buf *out)
{
    qf_buf_appendf(out, "  %-8s %-8s %-8s %12.2f %14.2f\n", what, row->view,
                   row->device, row->first.rate / GIGA, row->second.rate / GIGA);
    if (row->second.chunks_encoded != 0)
        qf_buf_appendf(out,
                       "           odd: %" PRIu64
                       " chunks were not in the cache the second time\n",
                       row->second.chunks_encoded);
}

void qf_bench_text(const struct qf_bench *bench, struct qf_buf *out)
{
    machine_text(out);
    kernels_text(bench, out);
    qf_buf_appendf(out,
                   "\nreading %.0f MB of source: GB/s of source, all processors\n"
                   "  %-8s %-8s %-8s %12s %14s\n"
                   "  %-8s %-8s %-8s %12.2f\n",
                   (double)bench->source_size / 1e6, "", "view", "device", "first",
                   "from the cache", "read()", "", "", bench->source_rate / GIGA);
    for (size_t i = 0; i < bench->row_count; i++)
        row_text("engine", &bench->rows[i], out);
    if (bench->mount_problem.text[0] == '\0')
        row_text("mount", &bench->mount, out);
    else
        qf_buf_appendf(out, "  mount    not measured: %s\n", bench->mount_problem.text);
    qf_buf_appendf(out, "\n%.1f s; %s\n", bench->seconds,
                   "read() is one thread, the source in memory; quantfs doctor tells "
                   "what is in the way");
}
