/* stmt_names.c - what one client has prepared: its names and its unnamed statement.
 * Owns: names, texts of unnamed statements.   Threads: the client's worker.
 * Idea: a name is a cell that holds a statement or nothing, and stays as long as an unanswered
 * request may still put something back. Texts of unnamed statements lie in buffers that are used
 * again, for drivers send one with each query. */
#include "base/hash.h"
#include "pg/stmt_int.h"

#include <stdlib.h>
#include <string.h>

#define SPARES 4
#define SPARE_MAX                                                                                  \
    16384 /* a longer buffer is not kept for a client that may never need it again                 \
           */
#define TEXT_MIN 256u

struct prt_names *prt_names_new(void)
{
    return calloc(1, sizeof(struct prt_names));
}

void prt_names_free(struct prt_names *n)
{
    struct prt_map_node *at, *next;

    if (!n) {
        return;
    }
    for (at = prt_map_next(&n->by_name, NULL); at; at = next) {
        next = prt_map_next(&n->by_name, at);
        struct prt_name *name = prt_container_of(at, struct prt_name, node);
        prt_stmt_unref(name->now.stmt);
        free(name);
    }
    prt_map_fini(&n->by_name);
    prt_unnamed_drop(NULL, &n->un);
    for (struct prt_text *t = n->spare, *after; t; t = after) {
        after = t->next;
        free(t);
    }
    free(n);
}

size_t prt_names_count(const struct prt_names *n)
{
    return n ? n->count : 0;
}

/* ---- names ---- */
/* PostgreSQL compares so much of them. */
static struct prt_str cut(struct prt_str name)
{
    return name.n > PRT_NAME_MAX ? (struct prt_str){name.p, PRT_NAME_MAX} : name;
}

struct prt_name *prt_name_find(struct prt_names *n, struct prt_str name)
{
    struct prt_map_node *at;

    if (!n || n->by_name.n == 0) {
        return NULL;
    }
    if (n->last && prt_str_eq(n->last->node.key, name)) {
        return n->last;
    }
    at = prt_map_get(&n->by_name, cut(name));
    if (at) {
        n->last = prt_container_of(at, struct prt_name, node);
    }
    return at ? n->last : NULL;
}

struct prt_name *prt_name_make(struct prt_names *n, struct prt_str text)
{
    struct prt_name *name = prt_name_find(n, text);
    struct prt_str key = cut(text);

    if (name) {
        return name;
    }
    name = calloc(1, sizeof *name);
    if (!name) {
        return NULL;
    }
    memcpy(name->text, key.p, key.n);
    if (!prt_map_put(&n->by_name, &name->node, (struct prt_str){name->text, key.n})) {
        free(name);
        return NULL;
    }
    return name;
}

static void gone_if_unused(struct prt_names *n, struct prt_name *name)
{
    if (name->refs == 0 && !name->now.stmt) {
        prt_map_del(&n->by_name, &name->node);
        n->last = n->last == name ? NULL : n->last;
        free(name);
    }
}

void prt_name_set(struct prt_names *n, struct prt_name *name, struct prt_value v)
{
    if (name->now.stmt) {
        n->count--;
        n->bytes -= name->now.stmt->rest.n;
        prt_stmt_unref(name->now.stmt);
    }
    name->now = v;
    if (v.stmt) {
        n->count++;
        n->bytes += v.stmt->rest.n;
    }
}

void prt_name_unref(struct prt_names *n, struct prt_name *name)
{
    prt_assert(name->refs > 0);
    name->refs--;
    gone_if_unused(n, name);
}

void prt_names_forget(struct prt_names *n, uint64_t seq)
{
    struct prt_map_node *at, *next;

    for (at = prt_map_next(&n->by_name, NULL); at; at = next) {
        next = prt_map_next(&n->by_name, at);
        struct prt_name *name = prt_container_of(at, struct prt_name, node);
        if (name->now.stmt && name->now.seq <= seq) {
            prt_name_set(n, name, (struct prt_value){0});
            gone_if_unused(n, name);
        }
    }
}

/* ---- the unnamed statement ---- */
struct prt_text *prt_text_new(struct prt_names *n, const uint8_t *rest, uint32_t size)
{
    struct prt_text *t = n->spare;

    if (t) {
        n->spare = t->next;
        n->spares--;
    }
    if (!t || t->cap < size) {
        uint32_t cap = size < TEXT_MIN ? TEXT_MIN : size;
        struct prt_text *grown = realloc(t, sizeof *t + cap);
        if (!grown) {
            free(t);
            return NULL;
        }
        t = grown;
        t->cap = cap;
    }
    t->next = NULL;
    t->refs = 1;
    t->n = size;
    memcpy(t->p, rest, size);
    return t;
}

void prt_text_unref(struct prt_names *n, struct prt_text *t)
{
    if (!t || --t->refs > 0) {
        return;
    }
    if (!n || n->spares == SPARES || t->cap > SPARE_MAX) {
        free(t);
        return;
    }
    t->next = n->spare;
    n->spare = t;
    n->spares++;
}

void prt_unnamed_drop(struct prt_names *n, struct prt_unnamed *u)
{
    prt_text_unref(n, u->text);
    prt_effects_unref(u->effects);
    *u = (struct prt_unnamed){0};
}
