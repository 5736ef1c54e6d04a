/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads look up, list, open, read and close while another one replaces and
 * touches what they read. Each file's contents are one of two versions: whatever is
 * read in one open must be of one version, from the first byte to the last. */
#include "test_fs_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#define READERS 6
#define MODELS  3
#define RUN_MS  1500

static struct sfx s;
static atomic_bool stop;
static _Atomic unsigned whole, stale, passed;
static uint64_t hashes[2][4]; /* of view and source file of each version */
static const char *const views[] = {"nf4", "dq"};

static const struct stfile_tensor other_tensors[] = {
    {"model.layers.1.self_attn.q_proj.weight", QF_BF16, 2, {64, 64, 0, 0}, NULL},
    {"model.layers.1.self_attn.k_proj.weight", QF_BF16, 2, {32, 64, 0, 0}, NULL},
    {"model.norm.weight", QF_BF16, 1, {64, 0, 0, 0}, NULL},
};

static bool is_stale(int rc)
{
    return rc == -ESTALE || rc == -ENOENT;
}

/* Reads a file to its end; 0 and the hash, or the error. */
static int hash_of(const char *path, uint64_t *hash)
{
    struct qf_entry entry;
    qf_file *file;
    size_t size;
    int rc = sfx_lookup(&s, path, &entry);
    if (rc != 0)
        return rc;
    rc = qf_file_open(s.tree, entry.st.st_ino, &file);
    if (rc != 0)
        return rc;
    char *text = sfx_read(file, &size, &rc);
    if (text != NULL)
        *hash = qf_hash64(text, size);
    free(text);
    qf_file_close(file);
    return rc;
}

static bool is_known(uint64_t hash, size_t view)
{
    for (size_t v = 0; v < 2; v++)
        if (hash == hashes[v][view] || hash == hashes[v][2])
            return true;
    return false;
}

static void *reader(void *arg)
{
    uintptr_t seed = (uintptr_t)arg;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        char path[64];
        uint64_t hash = 0, id = 0;
        size_t view = (seed + i) % 2;
        snprintf(path, sizeof path, "%s/m%zu/model.safetensors", views[view],
                 (seed + i / 2) % MODELS);
        int rc = hash_of(path, &hash);
        if (is_stale(rc))
            atomic_fetch_add(&stale, 1);
        else if (rc != 0 || !is_known(hash, view))
            return (void *)"a file of mixed or unknown contents";
        else
            atomic_fetch_add(&whole, 1);
        if (hash == hashes[0][2] || hash == hashes[1][2])
            atomic_fetch_add(&passed, 1);
        snprintf(path, sizeof path, "%s/m%zu", views[view], (seed + i) % MODELS);
        struct qf_entry entry;
        qf_dir *dir;
        if (sfx_lookup(&s, path, &entry) == 0 &&
            qf_tree_opendir(s.tree, entry.st.st_ino, &dir) == 0) {
            unsigned type;
            for (size_t k = 0; k < qf_dir_count(dir); k++)
                qf_dir_entry(dir, k, &id, &type);
            qf_dir_close(dir);
            qf_tree_forget(s.tree, entry.st.st_ino, 1);
        }
        if (sfx_lookup(&s, ".quantfs/status", &entry) != 0 ||
            hash_of(".quantfs/status", &hash) != 0)
            return (void *)"no status";
    }
    return NULL;
}

static void put_version(unsigned version, unsigned model)
{
    char path[64];
    stfile_write(s.dir, "new", version == 0 ? model_tensors : other_tensors,
                 MODEL_TENSORS);
    snprintf(path, sizeof path, "m%u/model.safetensors", model);
    assert_int_equal(rename(sfx_path(&s, "new"), sfx_path(&s, path)), 0);
}

static void *changer(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        char path[64];
        put_version(i / MODELS % 2, i % MODELS);
        usleep(12000);
        snprintf(path, sizeof path, "m%u/model.safetensors", (i + 1) % MODELS);
        utimensat(AT_FDCWD, sfx_path(&s, path), NULL, 0);
        snprintf(path, sizeof path, "m%u/config.json", (i + 2) % MODELS);
        utimensat(AT_FDCWD, sfx_path(&s, path), NULL, 0);
        usleep(12000);
    }
    return NULL;
}

static void learn_versions(void)
{
    for (unsigned v = 0; v < 2; v++) {
        put_version(v, 0);
        usleep(30000);
        sfx_close(&s);
        sfx_open(&s, "nf4:dq");
        for (size_t i = 0; i < 2; i++) {
            char path[64];
            snprintf(path, sizeof path, "%s/m0/model.safetensors", views[i]);
            assert_int_equal(hash_of(path, &hashes[v][i]), 0);
        }
        size_t size;
        unsigned char *source =
            stfile_make(v == 0 ? model_tensors : other_tensors, MODEL_TENSORS, &size);
        hashes[v][2] = qf_hash64(source, size);
        free(source);
        assert_true(hashes[v][0] != hashes[v][1] && hashes[v][0] != hashes[v][2]);
    }
    assert_true(hashes[0][0] != hashes[1][0]);
}

static void test_stress(void **state)
{
    (void)state;
    pthread_t threads[READERS], change;
    sfx_begin(&s);
    for (int i = 0; i < MODELS; i++) {
        char name[16];
        snprintf(name, sizeof name, "m%d", i);
        sfx_model(&s, name);
    }
    sfx_open(&s, "nf4:dq");
    learn_versions();
    for (uintptr_t i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reader, (void *)i), 0);
    assert_int_equal(pthread_create(&change, NULL, changer, NULL), 0);
    usleep(RUN_MS * 1000);
    atomic_store(&stop, true);
    pthread_join(change, NULL);
    for (size_t i = 0; i < READERS; i++) {
        void *complaint;
        pthread_join(threads[i], &complaint);
        if (complaint != NULL)
            fail_msg("%s", (const char *)complaint);
    }
    print_message("read whole: %u, as they are: %u, stale: %u\n", whole, passed, stale);
    assert_true(whole > 20 && whole > passed);
    struct qf_engine_stats stats;
    qf_engine_stats(s.engine, &stats);
    sfx_close(&s);
    sfx_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stress)};
    return cmocka_run_group_tests_name("fs_stress", tests, NULL, NULL);
}
