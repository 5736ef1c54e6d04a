/* SPDX-License-Identifier: Apache-2.0 */
/* LMDB trusts its file: page numbers, offsets within pages and lengths are followed as
 * they stand, through a map, so one flipped bit can be a crash or a page given out
 * twice. Values carry checksums of ours, the trees do not. Therefore the trees are
 * walked once at open, with pread, before LMDB sees the file: every offset within its
 * page, every key in order, every page claimed exactly once (by a tree, by a value or
 * by the free list), every counter equal to what was counted. That costs one read of
 * about a hundredth of a percent of the file. The layout is that of LMDB 0.9, "data
 * version 1", little-endian, 64 bit; databases here have no duplicates. */
#include "cache/lmdb_check.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define META_MAGIC      0xbeefc0deu
#define META_VERSION    1u
#define PAGE_HEAD       16u
#define NODE_HEAD       8u
#define PAGE_SIZE_MIN   512u
#define PAGE_SIZE_MAX   32768u
#define DEPTH_MAX       16u
#define KEY_SIZE_MAX    511u
#define NAMED_MAX       8u
#define TXN_MAX         (UINT64_C(1) << 62)
#define NO_PAGE         UINT64_MAX

#define PAGE_BRANCH     0x01u
#define PAGE_LEAF       0x02u
#define PAGE_OVERFLOW   0x04u
#define PAGE_META       0x08u
#define NODE_BIG        0x01u
#define NODE_SUB        0x02u
#define DB_INTEGER_KEYS 0x08u

struct db {
    uint32_t pad;
    uint16_t flags;
    uint16_t depth;
    uint64_t branch_pages;
    uint64_t leaf_pages;
    uint64_t overflow_pages;
    uint64_t entries;
    uint64_t root;
};

struct meta {
    uint32_t magic;
    uint32_t version;
    uint64_t address;
    uint64_t map_size;
    struct db free;
    struct db main;
    uint64_t last_page;
    uint64_t txn;
};

static_assert(sizeof(struct db) == 48 && sizeof(struct meta) == 136, "as in the file");

enum tree_kind { TREE_FREE, TREE_MAIN, TREE_NAMED };

/* One tree being walked. */
struct tree {
    enum tree_kind kind;
    struct db want;
    struct db seen;
    bool has_last; /* last holds a key that the next one is compared with */
    bool may_equal;
    size_t last_size;
    unsigned char last[KEY_SIZE_MAX];
};

struct check {
    int fd;
    uint32_t page_size;
    uint64_t file_pages;
    uint64_t pages; /* 1 + last page of the snapshot */
    uint64_t claimed_pages;
    uint64_t txn;
    unsigned char *claimed;   /* a bit for each page */
    unsigned char *pages_mem; /* DEPTH_MAX pages, then a map of one page's bytes */
    struct db named[NAMED_MAX];
    unsigned named_count;
    struct qf_err *err;
};

struct node {
    uint64_t page;  /* branch: the child */
    uint32_t size;  /* leaf: of the data */
    uint16_t flags; /* leaf */
    uint16_t key_size;
    const unsigned char *key;
    const unsigned char *data; /* leaf */
};

static int damaged(struct check *c, uint64_t page, const char *what)
{
    return qf_err_set(c->err, -EBADMSG, "page %llu: %s", (unsigned long long)page,
                      what);
}

static int read_at(struct check *c, void *buf, size_t size, uint64_t off)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(c->fd, (char *)buf + got, size - got, (off_t)(off + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return qf_err_set(c->err, -errno, "cannot read at %llu: %s",
                              (unsigned long long)off, strerror(errno));
        if (n == 0)
            return qf_err_set(c->err, -EBADMSG, "the file ends before byte %llu",
                              (unsigned long long)off + size);
        got += (size_t)n;
    }
    return 0;
}

/* Marks pages as used by one thing; only the free list may name pages past the end. */
static int claim(struct check *c, uint64_t first, uint64_t count, bool is_free)
{
    if (first < 2 || first >= c->pages || count > c->pages - first)
        return damaged(c, first, "a reference to it or to a page after it is no page");
    if (!is_free && first + count > c->file_pages)
        return damaged(c, first, "the file is too short for it");
    for (uint64_t p = first; p < first + count; p++) {
        unsigned char bit = (unsigned char)(1u << (p % 8));
        if (c->claimed[p / 8] & bit)
            return damaged(c, p, "it is used twice");
        c->claimed[p / 8] |= bit;
    }
    c->claimed_pages += count;
    return 0;
}

static int compare_keys(const struct tree *tree, const struct node *node)
{
    if (tree->kind == TREE_FREE) {
        uint64_t a = qf_load_u64(node->key);
        uint64_t b = qf_load_u64(tree->last);
        return (a > b) - (a < b);
    }
    size_t n = node->key_size < tree->last_size ? node->key_size : tree->last_size;
    int order = memcmp(node->key, tree->last, n);
    if (order != 0)
        return order;
    return (node->key_size > tree->last_size) - (node->key_size < tree->last_size);
}

/* Keys and separators come by in order: a separator is past every key before it and not
 * past the next key. */
static int take_key(struct check *c, struct tree *tree, const struct node *node,
                    bool separator, uint64_t page)
{
    size_t size = node->key_size;
    if (size == 0 || size > KEY_SIZE_MAX || (tree->kind == TREE_FREE && size != 8))
        return damaged(c, page, "a key has a wrong size");
    if (tree->has_last) {
        int order = compare_keys(tree, node);
        if (order < 0 || (order == 0 && (separator || !tree->may_equal)))
            return damaged(c, page, "keys are out of order");
    }
    memcpy(tree->last, node->key, size);
    tree->last_size = size;
    tree->has_last = true;
    tree->may_equal = separator;
    return 0;
}

/* Reads node `i`, checks that it lies within the page and shares no byte with another
 * (`used` is a map of the page's 2-byte units). Returns false when it does not. */
static bool read_node(const struct check *c, const unsigned char *page, unsigned i,
                      bool leaf, unsigned char *used, struct node *out)
{
    uint16_t off, words[4], upper;
    memcpy(&off, page + PAGE_HEAD + 2 * i, 2);
    memcpy(&upper, page + 14, 2);
    if (off % 2 != 0 || off < upper || off > c->page_size - NODE_HEAD)
        return false;
    memcpy(words, page + off, sizeof words);
    uint32_t low = words[0] | (uint32_t)words[1] << 16;
    *out = (struct node){
        .page = low | (uint64_t)words[2] << 32,
        .size = low,
        .flags = words[2],
        .key_size = words[3],
        .key = page + off + NODE_HEAD,
        .data = page + off + NODE_HEAD + words[3],
    };
    uint64_t size = NODE_HEAD + (uint64_t)out->key_size;
    if (leaf)
        size += out->flags & NODE_BIG ? sizeof(uint64_t) : out->size;
    size += size % 2;
    if (size > c->page_size - off)
        return false;
    for (uint64_t u = off / 2; u < (off + size) / 2; u++) {
        if (used[u])
            return false;
        used[u] = 1;
    }
    return true;
}

static int take_free_list(struct check *c, const unsigned char *list, size_t size,
                          uint64_t page)
{
    if (size < 8 || size % 8 != 0 || qf_load_u64(list) > size / 8 - 1)
        return damaged(c, page, "a free list has a wrong size");
    uint64_t count = qf_load_u64(list);
    uint64_t last = NO_PAGE;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t p = qf_load_u64(list + 8 * i);
        if (p >= last)
            return damaged(c, page, "a free list is out of order");
        int rc = claim(c, p, 1, true);
        if (rc != 0)
            return rc;
        last = p;
    }
    return 0;
}

/* Values of the databases with names are left alone; the free list and the
 * databases' own records, which LMDB follows, are read. */
static int take_big(struct check *c, struct tree *tree, const struct node *node,
                    uint64_t page)
{
    uint64_t first = qf_load_u64(node->data);
    uint64_t count = (PAGE_HEAD - 1 + (uint64_t)node->size) / c->page_size + 1;
    int rc = claim(c, first, count, false);
    tree->seen.overflow_pages += count;
    if (rc != 0 || tree->kind == TREE_NAMED)
        return rc;
    unsigned char *mem = malloc(count * c->page_size);
    if (mem == NULL)
        return -ENOMEM;
    rc = read_at(c, mem, count * c->page_size, first * c->page_size);
    uint16_t flags;
    memcpy(&flags, mem + 10, 2);
    if (rc == 0 && (qf_load_u64(mem) != first || flags != PAGE_OVERFLOW ||
                    qf_load_u32(mem + 12) != count))
        rc = damaged(c, first, "not the head of a value");
    if (rc == 0 && tree->kind == TREE_FREE)
        rc = take_free_list(c, mem + PAGE_HEAD, node->size, page);
    free(mem);
    return rc;
}

static int take_leaf_node(struct check *c, struct tree *tree, const struct node *node,
                          uint64_t page)
{
    int rc = take_key(c, tree, node, false, page);
    if (rc != 0)
        return rc;
    tree->seen.entries++;
    if (tree->kind == TREE_FREE && qf_load_u64(node->key) > c->txn)
        return damaged(c, page, "a free list of the future");
    if (node->flags == NODE_BIG)
        return take_big(c, tree, node, page);
    if (node->flags == NODE_SUB && tree->kind == TREE_MAIN) {
        if (node->size != sizeof(struct db) || c->named_count == NAMED_MAX)
            return damaged(c, page, "not the record of a database");
        memcpy(&c->named[c->named_count++], node->data, sizeof(struct db));
        return 0;
    }
    if (node->flags != 0)
        return damaged(c, page, "an entry of an unknown kind");
    if (tree->kind == TREE_FREE)
        return take_free_list(c, node->data, node->size, page);
    return 0;
}

static int walk(struct check *c, struct tree *tree, uint64_t page, unsigned depth);

static int take_node(struct check *c, struct tree *tree, const struct node *node,
                     unsigned i, bool leaf, uint64_t page, unsigned depth)
{
    if (leaf)
        return take_leaf_node(c, tree, node, page);
    /* The first key of a branch page stands for "less than all" and is not used. */
    int rc = i == 0 ? 0 : take_key(c, tree, node, true, page);
    return rc != 0 ? rc : walk(c, tree, node->page, depth + 1);
}

/* Depth is bounded by DEPTH_MAX, and every page is entered at most once. */
static int walk(struct check *c, struct tree *tree, uint64_t page, unsigned depth)
{
    int rc = claim(c, page, 1, false);
    if (rc != 0)
        return rc;
    if (depth > tree->want.depth)
        return damaged(c, page, "the tree is too deep");
    unsigned char *mem = c->pages_mem + (size_t)(depth - 1) * c->page_size * 2;
    unsigned char *used = mem + c->page_size;
    rc = read_at(c, mem, c->page_size, page * c->page_size);
    if (rc != 0)
        return rc;
    memset(used, 0, c->page_size / 2);
    uint16_t flags, lower, upper;
    memcpy(&flags, mem + 10, 2);
    memcpy(&lower, mem + 12, 2);
    memcpy(&upper, mem + 14, 2);
    bool leaf = depth == tree->want.depth;
    if (qf_load_u64(mem) != page || flags != (leaf ? PAGE_LEAF : PAGE_BRANCH))
        return damaged(c, page, "not the page that should be there");
    if (lower < PAGE_HEAD || lower % 2 != 0 || lower > upper || upper > c->page_size)
        return damaged(c, page, "its bounds are wrong");
    unsigned count = (lower - PAGE_HEAD) / 2u;
    if (count < (leaf || tree->kind == TREE_FREE ? 1u : 2u))
        return damaged(c, page, "it has too few entries");
    *(leaf ? &tree->seen.leaf_pages : &tree->seen.branch_pages) += 1;
    for (unsigned i = 0; i < count && rc == 0; i++) {
        struct node node;
        if (!read_node(c, mem, i, leaf, used, &node))
            return damaged(c, page, "an entry is not within the page or overlaps");
        rc = take_node(c, tree, &node, i, leaf, page, depth);
    }
    return rc;
}

static int walk_tree(struct check *c, enum tree_kind kind, const struct db *want,
                     uint64_t *entries)
{
    struct tree tree = {.kind = kind, .want = *want};
    tree.seen = (struct db){.pad = want->pad, .depth = want->depth, .root = want->root};
    tree.seen.flags = kind == TREE_FREE ? DB_INTEGER_KEYS : 0;
    if (want->depth > DEPTH_MAX || (want->depth == 0) != (want->root == NO_PAGE) ||
        (kind != TREE_FREE && want->pad != 0))
        return damaged(c, want->root, "the record of its tree is wrong");
    if (want->depth > 0) {
        int rc = walk(c, &tree, want->root, 1);
        if (rc != 0)
            return rc;
    }
    if (memcmp(&tree.seen, &tree.want, sizeof tree.seen) != 0)
        return damaged(c, want->root, "the counts of its tree are wrong");
    *entries += tree.seen.entries;
    return 0;
}

static int check_meta(struct check *c, const unsigned char *page, unsigned index,
                      struct meta *out)
{
    uint16_t flags;
    memcpy(&flags, page + 10, 2);
    memcpy(out, page + PAGE_HEAD, sizeof *out);
    if (qf_load_u64(page) != index || flags != PAGE_META || out->magic != META_MAGIC)
        return damaged(c, index, "not an LMDB file");
    if (out->version != META_VERSION)
        return qf_err_set(c->err, -ENOTSUP,
                          "LMDB data version %u; this program knows version %u",
                          out->version, META_VERSION);
    uint32_t size = out->free.pad;
    if (size < PAGE_SIZE_MIN || size > PAGE_SIZE_MAX || (size & (size - 1)) != 0 ||
        (c->page_size != 0 && size != c->page_size))
        return damaged(c, index, "the page size is wrong");
    if (out->address != 0 || out->txn >= TXN_MAX || out->map_size > INT64_MAX ||
        (out->txn != 0 && out->txn % 2 != index))
        return damaged(c, index, "a meta page is wrong");
    c->page_size = size;
    return 0;
}

/* The newer of the two meta pages, as LMDB chooses it. */
static int read_metas(struct check *c, struct meta *out)
{
    struct meta metas[2];
    unsigned char head[PAGE_HEAD + sizeof(struct meta)];
    for (unsigned i = 0; i < 2; i++) {
        int rc = read_at(c, head, sizeof head, (uint64_t)i * c->page_size);
        if (rc == 0)
            rc = check_meta(c, head, i, &metas[i]);
        if (rc != 0)
            return rc;
    }
    *out = metas[metas[1].txn > metas[0].txn];
    return 0;
}

static int check_trees(struct check *c, const struct meta *meta,
                       struct qf_lmdb_census *census)
{
    uint64_t ignored = 0;
    int rc = walk_tree(c, TREE_FREE, &meta->free, &ignored);
    if (rc == 0)
        rc = walk_tree(c, TREE_MAIN, &meta->main, &ignored);
    for (unsigned i = 0; i < c->named_count && rc == 0; i++)
        rc = walk_tree(c, TREE_NAMED, &c->named[i], &census->entries);
    census->bytes = c->pages * c->page_size;
    /* LMDB loses none, whenever it is killed; a wrong reference does. */
    if (rc == 0 && c->claimed_pages != c->pages - 2)
        rc = qf_err_set(c->err, -EBADMSG, "%llu pages are neither used nor free",
                        (unsigned long long)(c->pages - 2 - c->claimed_pages));
    return rc;
}

int qf_lmdb_check(int fd, struct qf_lmdb_census *census, struct qf_err *err)
{
    struct check c = {.fd = fd, .err = err};
    struct qf_lmdb_census unused;
    struct meta meta;
    struct stat st;
    census = census != NULL ? census : &unused;
    *census = (struct qf_lmdb_census){0};
    if (fstat(fd, &st) != 0)
        return qf_err_set(err, -errno, "cannot be examined: %s", strerror(errno));
    if (st.st_size == 0)
        return 0;
    int rc = read_metas(&c, &meta);
    if (rc != 0)
        return rc;
    c.file_pages = (uint64_t)st.st_size / c.page_size;
    c.txn = meta.txn;
    /* The free list may name pages past the end of the file, but a sane file cannot
     * lack many of them: a transaction that failed had them. */
    if (meta.last_page < 1 || meta.last_page > INT64_MAX / PAGE_SIZE_MAX ||
        meta.last_page / 16 > c.file_pages + 65536)
        return qf_err_set(err, -EBADMSG, "the file is too short");
    c.pages = meta.last_page + 1;
    c.claimed = calloc(1, c.pages / 8 + 1);
    c.pages_mem = malloc((size_t)DEPTH_MAX * c.page_size * 2);
    if (c.claimed == NULL || c.pages_mem == NULL)
        rc = -ENOMEM;
    else
        rc = check_trees(&c, &meta, census);
    free(c.claimed);
    free(c.pages_mem);
    return rc;
}
