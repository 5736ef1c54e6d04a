/* SPDX-License-Identifier: Apache-2.0 */
/* Everything below the FUSE layer under faults: a fixed piece of work is done over and
 * over, each time with another of its calls failing (allocations, system calls on the
 * source and on the cache, the store, the backend, the clock), once or from that call
 * on. Each step of the work must give the right bytes or an error that fits the fault,
 * nothing may be left open or allocated, and when the fault is gone the same mount must
 * serve everything. */
#include "test_fs_faults_rig.h"

#include <signal.h>

#ifdef FAULTS_MISSING
int main(void)
{
    return 77;
}
#else

#define CONFIG                                                                         \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"torch_dtype\": \"bfloat16\"}\n"
#define LAYER0        "model.layers.0.self_attn."

static const struct stfile_tensor first[] = {
    {LAYER0 "q_proj.weight", QF_BF16, 2, {64, 64, 0, 0}, NULL},
};
static const struct stfile_tensor second[] = {
    {LAYER0 "k_proj.weight", QF_F32, 2, {32, 64, 0, 0}, NULL},
    {"model.norm.weight", QF_F32, 1, {64, 0, 0, 0}, NULL},
};
/* Two chunks, and two that are one each. */
static const struct stfile_tensor big[] = {
    {LAYER0 "q_proj.weight", QF_BF16, 2, {1040, 1024, 0, 0}, NULL},
    {LAYER0 "k_proj.weight", QF_BF16, 2, {64, 1024, 0, 0}, NULL},
    {LAYER0 "v_proj.weight", QF_F32, 2, {64, 1024, 0, 0}, NULL},
    {"model.norm.weight", QF_F32, 1, {1024, 0, 0, 0}, NULL},
};

#define SHARD1        "model-00001-of-00002.safetensors"
#define SHARD2        "model-00002-of-00002.safetensors"
#define INDEX         "model.safetensors.index.json"

static struct file_ref small_refs[] = {
    {.path = "nf4/m/config.json"},
    {.path = "nf4/m/" INDEX},
    {.path = "nf4/m/" SHARD1},
    {.path = "nf4/m/" SHARD2},
    {.path = "nf4/m/README.md"},
    {.path = "nf4/m/linked.txt"},
    {.path = "dq/m/config.json"},
    {.path = "dq/m/" SHARD2},
    {.path = "int8/m/config.json"},
    {.path = "int8/m/" SHARD1},
    {.path = "dq+skip=x:y/m/config.json"},
};
#define SMALL_COUNT   (sizeof small_refs / sizeof small_refs[0])

static struct file_ref big_refs[OPEN_MAX] = {{.path = "nf4/b/model.safetensors"},
                                             {.path = "dq/b/model.safetensors"},
                                             {.path = "int8/b/model.safetensors"}};

static char *source; /* the store's directory */

/* ---- kinds of faults ---- */

enum where { CALLS, GET_MISSING, GET_CUT, PUT_DROPPED, ENCODE };

struct kind {
    const char *name;
    enum where where;
    unsigned calls; /* FAULT_… */
    int error;      /* errno; 0: short, or a clock that is wrong */
    long jump_s;
    int allowed[5];
    bool of_file; /* says that a file is gone or may not be read */
};

#define SOURCE_CALLS  (FAULT_OPEN | FAULT_STAT | FAULT_READ | FAULT_LINK | FAULT_LIST)
#define CACHE_CALLS   (FAULT_WRITE | FAULT_SYNC | FAULT_SIZE | FAULT_MAP | FAULT_LOCK)

static const struct kind allocation = {"allocation", CALLS, FAULT_ALLOC, ENOMEM, 0,
                                       {ENOMEM},     false};

static const struct kind source_kinds[] = {
    {"source EIO", CALLS, SOURCE_CALLS, EIO, 0, {EIO}, false},
    {"source ENOMEM", CALLS, SOURCE_CALLS, ENOMEM, 0, {ENOMEM}, false},
    {"source EMFILE", CALLS, SOURCE_CALLS, EMFILE, 0, {EMFILE}, false},
    {"source EACCES", CALLS, SOURCE_CALLS, EACCES, 0, {EACCES, ESTALE}, true},
    {"source ESTALE", CALLS, SOURCE_CALLS, ESTALE, 0, {ESTALE}, true},
    {"source ENOENT", CALLS, SOURCE_CALLS, ENOENT, 0, {ENOENT, ESTALE}, true},
    {"source EINTR", CALLS, FAULT_OPEN | FAULT_READ, EINTR, 0, {0}, false},
    {"source short reads", CALLS, FAULT_READ, 0, 0, {0}, false},
};

static const struct kind store_kinds[] = {
    {"store: a get that misses", GET_MISSING, 0, 0, 0, {0}, false},
    {"store: a value of another size", GET_CUT, 0, 0, 0, {0}, false},
    {"store: a put that is lost", PUT_DROPPED, 0, 0, 0, {0}, false},
};

static const struct kind backend_kinds[] = {
    {"backend EIO", ENCODE, 0, EIO, 0, {EIO}, false},
    {"backend ENOMEM", ENCODE, 0, ENOMEM, 0, {ENOMEM}, false},
};

static const struct kind cache_kinds[] = {
    {"cache ENOSPC", CALLS, CACHE_CALLS, ENOSPC, 0, {0}, false},
    {"cache EIO", CALLS, CACHE_CALLS, EIO, 0, {0}, false},
    {"cache short writes", CALLS, FAULT_WRITE, 0, 0, {0}, false},
};

#define OPENING_CALLS (CACHE_CALLS | FAULT_OPEN | FAULT_STAT | FAULT_READ)

static const struct kind opening_kinds[] = {
    {"allocation", CALLS, FAULT_ALLOC | FAULT_MAP, ENOMEM, 0, {ENOMEM, EAGAIN}, false},
    {"ENOSPC", CALLS, OPENING_CALLS, ENOSPC, 0, {ENOSPC, ENOENT, EBADMSG}, false},
    {"EIO", CALLS, OPENING_CALLS, EIO, 0, {EIO, ENOENT, EBADMSG}, false},
    {"EMFILE", CALLS, OPENING_CALLS, EMFILE, 0, {EMFILE, ENOENT, EBADMSG}, false},
    {"short reads and writes",
     CALLS,
     FAULT_READ | FAULT_WRITE,
     0,
     0,
     {ENOSPC, EIO, EBADMSG},
     false},
};

static const struct kind clock_kinds[] = {
    {"clock ahead", CALLS, FAULT_CLOCK, 0, 7200, {0}, false},
    {"clock back", CALLS, FAULT_CLOCK, 0, -7200, {0}, false},
};

#define FAULT_MANY    1000000

static struct fault_calls *calls_of(struct rig *r, enum where where)
{
    return where == GET_MISSING ? &r->store.missing
           : where == GET_CUT   ? &r->store.cut
                                : &r->store.dropped;
}

static void arm(struct rig *r, const struct kind *kind)
{
    const struct faults faults = {kind->calls, kind->error, judge.onwards, judge.at,
                                  kind->jump_s};
    int many = judge.onwards ? FAULT_MANY : 1;
    if (kind->where == CALLS) {
        faults_arm(&faults);
    } else if (kind->where == ENCODE) {
        atomic_store(&r->backend.calls, 0);
        r->backend.rc = -kind->error;
        atomic_store(&r->backend.fail_count, many);
        atomic_store(&r->backend.fail_from, (int)judge.at);
    } else {
        struct fault_calls *calls = calls_of(r, kind->where);
        atomic_store(&calls->calls, 0);
        atomic_store(&calls->count, many);
        atomic_store(&calls->from, (int)judge.at);
    }
}

/* Returns how many calls were counted. */
static long disarm(struct rig *r, const struct kind *kind)
{
    if (kind->where == CALLS)
        return faults_disarm();
    if (kind->where == ENCODE) {
        atomic_store(&r->backend.fail_from, 0);
        return atomic_load(&r->backend.calls);
    }
    struct fault_calls *calls = calls_of(r, kind->where);
    atomic_store(&calls->from, 0);
    return atomic_load(&calls->calls);
}

/* ---- the work ---- */

/* Names, attributes, listings, and all of some small files. */
static void visit_all(struct rig *r)
{
    static const char *const views[] = {"nf4", "dq", "int8"};
    static const char *const names[] = {"config.json", INDEX,       SHARD1,
                                        SHARD2,        "README.md", "linked.txt"};
    struct qf_entry entry;
    visit_dir(r, "", views, 3);
    visit_dir(r, "nf4/m", names, 6);
    for (size_t i = 0; i < SMALL_COUNT; i++)
        visit_file(r, &small_refs[i]);
    visit_status(r);
    /* What the kernel knows from before a restart. */
    uint64_t id = qf_node_id("nf4", "m/README.md");
    if (is_fine(qf_tree_getattr(r->tree, id, &entry), "getattr", "an id") &&
        (size_t)entry.st.st_size != small_refs[4].size)
        die("WRONG SIZE", "an id", 0);
}

static void close_files(struct rig *r)
{
    for (int i = 0; i < OPEN_MAX; i++)
        qf_file_close(r->files[i]);
    memset(r->files, 0, sizeof r->files);
}

static void open_files(struct rig *r)
{
    struct qf_entry entry;
    for (int i = 0; i < OPEN_MAX; i++)
        assert_int_equal(open_path(r, big_refs[i].path, &entry, &r->files[i]), 0);
}

/* All of the large files, which are open. */
static void read_files(struct rig *r)
{
    for (int i = 0; i < OPEN_MAX; i++)
        read_whole(r->files[i], &big_refs[i], 256u << 10);
    qf_store_flush(&r->store.base);
}

/* Fills the store and begins anew with it. */
static void open_warm(struct rig *r)
{
    open_files(r);
    read_files(r);
    close_files(r);
    rig_stop(r);
    assert_int_equal(rig_start(r), 0);
    open_files(r);
}

static void nothing(struct rig *r)
{
    (void)r;
}

struct stage {
    const char *name;
    void (*prepare)(struct rig *r);
    void (*work)(struct rig *r);
    bool lmdb;
    bool keeps_cache; /* from case to case */
};

static const struct stage tree_stage = {"tree", nothing, visit_all, false, false};
static const struct stage cold_mem = {"cold, memory", open_files, read_files, false,
                                      false};
static const struct stage cold_lmdb = {"cold, LMDB", open_files, read_files, true,
                                       false};
static const struct stage warm_mem = {"warm, memory", open_warm, read_files, false,
                                      false};
static const struct stage warm_lmdb = {"warm, LMDB", open_warm, read_files, true, true};

static const struct stage opening_new = {"opening, new", NULL, NULL, true, false};
static const struct stage opening_old = {"opening, old", NULL, NULL, true, true};

static char *kept_cache;

static void begin_case(const struct kind *kind, long at, bool onwards)
{
    judge = (struct judge){.what = kind->name,
                           .at = at,
                           .onwards = onwards,
                           .allowed = kind->allowed,
                           .may_hide = kind->of_file,
                           .may_be_plain = kind->of_file && kind->error == EACCES};
    alarm(120);
}

/* From here on everything must be right. */
static void be_strict(void)
{
    judge.allowed = NULL;
    judge.may_be_plain = judge.may_hide = false;
}

/* A model that was shown plain because it could not be read may stay so until something
 * about the directory changes. */
static void touch(const char *path)
{
    char full[4096];
    snprintf(full, sizeof full, "%s/%s", source, path);
    assert_int_equal(utimensat(AT_FDCWD, full, NULL, 0), 0);
}

static void check_leaks(long live, unsigned fds)
{
    if (count_fds() != fds)
        die("descriptors are left open", "", 0);
    if (faults_live_blocks() != live)
        die("memory is left", "", (int)(live - faults_live_blocks()));
}

static long run_case(const struct stage *stage, const struct kind *kind, long at,
                     bool onwards)
{
    struct rig r;
    char *cache = stage->keeps_cache ? kept_cache : stage->lmdb ? tmpdir_make() : NULL;
    long live = faults_live_blocks();
    unsigned fds = count_fds();
    begin_case(kind, at, onwards);
    assert_int_equal(rig_open(&r, source, cache), 0);
    stage->prepare(&r);
    qf_store_flush(&r.store.base);
    r.fds = count_fds();
    arm(&r, kind);
    stage->work(&r);
    long calls = disarm(&r, kind);
    rig_settle(&r);
    if (judge.plain_seen && kind->error == EACCES)
        touch("m");
    be_strict();
    stage->work(&r);
    rig_settle(&r);
    close_files(&r);
    rig_close(&r); /* the engine asserts that all of its buffers have come back */
    check_leaks(live, fds);
    if (cache != NULL && !stage->keeps_cache)
        tmpdir_remove(cache);
    return calls;
}

/* The mount is opened, used a little and closed under the fault. */
static long run_opening(const struct stage *stage, const struct kind *kind, long at,
                        bool onwards)
{
    struct rig r;
    char *cache = stage->keeps_cache ? kept_cache : tmpdir_make();
    long live = faults_live_blocks();
    unsigned fds = count_fds();
    begin_case(kind, at, onwards);
    arm(&r, kind);
    if (is_fine(rig_open(&r, source, cache), "open", "the mount")) {
        visit_file(&r, &small_refs[2]);
        rig_close(&r);
    }
    long calls = disarm(&r, kind);
    check_leaks(live, fds);
    be_strict();
    if (is_fine(rig_open(&r, source, cache), "open", "the mount"))
        visit_all(&r);
    rig_close(&r);
    check_leaks(live, fds);
    if (!stage->keeps_cache)
        tmpdir_remove(cache);
    return calls;
}

/* Fails call 1, 2, … until the work has no more; every `stride`th if so many fail. */
static void sweep(const struct stage *stage, const struct kind *kind, bool onwards,
                  long stride)
{
    long (*run)(const struct stage *, const struct kind *, long, bool) =
        stage->work != NULL ? run_case : run_opening;
#ifdef FAULTS_NO_ALLOC
    if ((kind->calls & FAULT_ALLOC) != 0)
        return;
    stride *= 7; /* sanitizers are slow */
#endif
    long n = run(stage, kind, 0, onwards);
    long cases = 0, felt = 0, plain = 0;
    /* Threads make it differ a little from case to case. */
    for (long at = 1, calls = n; at <= n || at <= calls; at += stride) {
        calls = run(stage, kind, at, onwards);
        cases += at <= calls;
        felt += judge.errors != 0;
        plain += judge.plain_seen;
    }
    print_message("%-14s %-31s %s: %3ld calls, %3ld cases, %3ld with an error",
                  stage->name, kind->name, onwards ? "and all later" : "once         ",
                  n, cases, felt);
    print_message(kind->of_file ? ", %ld shown plain\n" : "\n", plain);
    assert_true(n > 0 && cases > 0);
}

/* ---- tests ---- */

static void test_allocation(void **state)
{
    (void)state;
    sweep(&tree_stage, &allocation, false, 1);
    sweep(&tree_stage, &allocation, true, 5);
    sweep(&cold_mem, &allocation, false, 1);
    sweep(&cold_lmdb, &allocation, false, 1);
    sweep(&cold_lmdb, &allocation, true, 3);
    sweep(&warm_mem, &allocation, false, 1);
    sweep(&warm_lmdb, &allocation, false, 1);
    sweep(&warm_lmdb, &allocation, true, 3);
}

static void test_source(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof source_kinds / sizeof source_kinds[0]; i++) {
        const struct kind *kind = &source_kinds[i];
        sweep(&tree_stage, kind, false, 1);
        sweep(&cold_mem, kind, false, 1);
        if (kind->error != EINTR) {
            sweep(&tree_stage, kind, true, 5);
            sweep(&cold_mem, kind, true, 3);
        }
    }
}

static void test_store(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof store_kinds / sizeof store_kinds[0]; i++) {
        const struct kind *kind = &store_kinds[i];
        bool put = kind->where == PUT_DROPPED;
        sweep(put ? &cold_mem : &warm_mem, kind, false, 1);
        sweep(put ? &cold_mem : &warm_mem, kind, true, 1);
        sweep(put ? &cold_lmdb : &warm_lmdb, kind, false, 1);
        sweep(put ? &cold_lmdb : &warm_lmdb, kind, true, 1);
    }
}

static void test_cache(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cache_kinds / sizeof cache_kinds[0]; i++) {
        sweep(&cold_lmdb, &cache_kinds[i], false, 1);
        sweep(&cold_lmdb, &cache_kinds[i], true, 1);
        sweep(&warm_lmdb, &cache_kinds[i], false, 1);
    }
}

static void test_opening(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof opening_kinds / sizeof opening_kinds[0]; i++) {
        sweep(&opening_new, &opening_kinds[i], false, 1);
        sweep(&opening_new, &opening_kinds[i], true, 3);
        sweep(&opening_old, &opening_kinds[i], false, 1);
        sweep(&opening_old, &opening_kinds[i], true, 3);
    }
}

static void test_backend(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof backend_kinds / sizeof backend_kinds[0]; i++) {
        sweep(&cold_mem, &backend_kinds[i], false, 1);
        sweep(&cold_mem, &backend_kinds[i], true, 1);
        sweep(&cold_lmdb, &backend_kinds[i], false, 1);
    }
}

static void test_clock(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof clock_kinds / sizeof clock_kinds[0]; i++) {
        sweep(&tree_stage, &clock_kinds[i], false, 1);
        sweep(&tree_stage, &clock_kinds[i], true, 1);
        sweep(&cold_lmdb, &clock_kinds[i], false, 1);
        sweep(&cold_lmdb, &clock_kinds[i], true, 1);
    }
}

static void make_store(void)
{
    char link[4096];
    tmpdir_write_text(source, "m/config.json", CONFIG);
    tmpdir_write_text(source, "m/" INDEX,
                      "{\"weight_map\": {\"" LAYER0 "q_proj.weight\": \"" SHARD1
                      "\", \"" LAYER0 "k_proj.weight\": \"" SHARD2
                      "\", \"model.norm.weight\": \"" SHARD2 "\"}}");
    stfile_write(source, "m/" SHARD1, first, 1);
    stfile_write(source, "m/" SHARD2, second, 2);
    tmpdir_write_text(source, "m/README.md", "hello\n");
    tmpdir_write_text(source, "other/text", "linked\n");
    snprintf(link, sizeof link, "%s/m/linked.txt", source);
    assert_int_equal(symlink("../other/text", link), 0);
    tmpdir_write_text(source, "b/config.json", CONFIG);
    stfile_write(source, "b/model.safetensors", big, 4);
}

static int set_up(void **state)
{
    (void)state;
    struct rig r;
    qf_log_set_level((enum qf_log_level) - 1); /* nothing: all of it is expected */
    source = tmpdir_make();
    kept_cache = tmpdir_make();
    make_store();
    assert_int_equal(rig_open(&r, source, NULL), 0);
    for (size_t i = 0; i < SMALL_COUNT; i++)
        make_ref(&r, &small_refs[i]);
    for (size_t i = 0; i < OPEN_MAX; i++) {
        make_ref(&r, &big_refs[i]);
        assert_true(big_refs[i].size < big_refs[i].plain_size * 3 / 4);
    }
    rig_close(&r);
    /* Libraries and threads keep what they allocate first. */
    judge.what = "none";
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_open(&r, source, kept_cache), 0);
        open_warm(&r);
        visit_all(&r);
        close_files(&r);
        rig_close(&r);
    }
    signal(SIGALRM, on_alarm);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < SMALL_COUNT; i++) {
        free(small_refs[i].bytes);
        free(small_refs[i].plain);
    }
    for (size_t i = 0; i < OPEN_MAX; i++) {
        free(big_refs[i].bytes);
        free(big_refs[i].plain);
    }
    tmpdir_remove(source);
    tmpdir_remove(kept_cache);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_allocation), cmocka_unit_test(test_source),
        cmocka_unit_test(test_store),      cmocka_unit_test(test_cache),
        cmocka_unit_test(test_opening),    cmocka_unit_test(test_backend),
        cmocka_unit_test(test_clock),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("fs_faults", tests, set_up, tear_down);
}
#endif
