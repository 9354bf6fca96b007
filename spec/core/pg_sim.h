/* pg_sim.h - a PostgreSQL of a few statements, for the tests of the statement layer: what it
 * prepares, binds, refuses and skips is as in PostgreSQL 15, what it computes is not. Answers leave
 * it at Flush, errors and ReadyForQuery only. */
#ifndef PRT_PG_SIM_H
#define PRT_PG_SIM_H
#include "pg/pg.h"

#include <stdio.h>
#include <string.h>

#define SIM_STATEMENTS 64
#define SIM_PORTALS 24

struct sim_stmt {
    bool exists;
    int shape; /* of the table, when it was parsed */
    char name[64], text[64];
};
struct sim_portal {
    bool exists, is_done;
    char name[64];
    struct sim_stmt stmt;
};
struct sim {
    struct sim_stmt unnamed, stmt[SIM_STATEMENTS];
    struct sim_portal portal[SIM_PORTALS];
    uint8_t status;
    bool skips;
    const int *shape;         /* of the table `t`, as of now */
    struct prt_buf held, out; /* answers: not sent yet; sent */
    unsigned parses, closes;
};

static inline void sim_put(struct sim *s, uint8_t type, const void *p, size_t n)
{
    uint8_t head[5] = {type};

    prt_put32(head + 1, (uint32_t)n + 4);
    (void)prt_buf_add(&s->held, head, 5);
    (void)prt_buf_add(&s->held, p, n);
}

static inline void sim_flush(struct sim *s)
{
    if (prt_buf_len(&s->held)) {
        (void)prt_buf_add(&s->out, prt_buf_data(&s->held), prt_buf_len(&s->held));
        prt_buf_reset(&s->held);
    }
}

static inline bool sim_is(const char *text, const char *word)
{
    return strcmp(text, word) == 0;
}

static inline void sim_drop_portals(struct sim *s)
{
    for (int i = 0; i < SIM_PORTALS; i++) {
        s->portal[i].exists = false;
    }
}

static inline bool sim_error(struct sim *s, const char *code, const char *text, const char *arg)
{
    char m[200];

    (void)snprintf(m, sizeof m, "%s: \"%s\"", text, arg);
    prt_put_error(&s->held, "ERROR", code, prt_str_of(m), NULL, NULL);
    sim_flush(s); /* as elog.c does */
    if (s->status == 'T') {
        s->status = 'E';
    }
    sim_drop_portals(s);
    return false;
}

static inline bool sim_aborted(struct sim *s)
{
    return sim_error(s, "25P02",
                     "current transaction is aborted, commands ignored until end of transaction "
                     "block",
                     "");
}

static inline bool sim_ends_tx(const char *text)
{
    return sim_is(text, "rollback") || sim_is(text, "ROLLBACK") || sim_is(text, "commit");
}

static inline struct sim_stmt *sim_stmt(struct sim *s, const char *name)
{
    if (!*name) {
        return s->unnamed.exists ? &s->unnamed : NULL;
    }
    for (int i = 0; i < SIM_STATEMENTS; i++) {
        if (s->stmt[i].exists && sim_is(s->stmt[i].name, name)) {
            return &s->stmt[i];
        }
    }
    return NULL;
}

static inline struct sim_portal *sim_portal(struct sim *s, const char *name)
{
    for (int i = 0; i < SIM_PORTALS; i++) {
        if (s->portal[i].exists && sim_is(s->portal[i].name, name)) {
            return &s->portal[i];
        }
    }
    return NULL;
}

static inline void sim_columns(struct sim *s, int n)
{
    uint8_t t[200] = {0, (uint8_t)n};
    size_t at = 2;

    for (int i = 0; i < n; i++) {
        t[at++] = (uint8_t)('a' + i);
        at += 19;
    }
    sim_put(s, 'T', t, at);
}

static inline int sim_width(const struct sim_stmt *st)
{
    return sim_is(st->text, "select * from t")   ? st->shape
           : strncmp(st->text, "select", 6) == 0 ? 1
                                                 : 0;
}

static inline bool sim_rows(struct sim *s, const struct sim_stmt *st)
{
    if (sim_is(st->text, "select 1/0")) {
        return sim_error(s, "22012", "division by zero", "");
    }
    sim_put(s, 'D', st->text, strlen(st->text) + 1);
    sim_put(s, 'C', "SELECT 1", 9);
    return true;
}

static inline void sim_deallocate_all(struct sim *s)
{
    for (int i = 0; i < SIM_STATEMENTS; i++) {
        s->stmt[i].exists = false;
    }
}

static inline void sim_tag(struct sim *s, const char *tag)
{
    sim_put(s, 'C', tag, strlen(tag) + 1);
}

static inline void sim_end_tx(struct sim *s, const char *text)
{
    bool commits = sim_is(text, "commit") && s->status != 'E';

    s->status = 'I';
    sim_drop_portals(s);
    sim_tag(s, commits ? "COMMIT" : "ROLLBACK");
}

static inline bool sim_utility(struct sim *s, const char *text)
{
    if (sim_ends_tx(text)) {
        sim_end_tx(s, text);
    } else if (sim_is(text, "begin")) {
        s->status = 'T';
        sim_tag(s, "BEGIN");
    } else if (sim_is(text, "deallocate all")) {
        sim_deallocate_all(s);
        sim_tag(s, "DEALLOCATE ALL");
    } else if (strncmp(text, "do ", 3) == 0) { /* it deallocates all, unseen */
        sim_deallocate_all(s);
        sim_tag(s, "DO");
    } else if (sim_is(text, "discard all")) {
        if (s->status == 'T') {
            return sim_error(s, "25001", "DISCARD ALL cannot run inside a transaction block", "");
        }
        sim_deallocate_all(s);
        sim_tag(s, "DISCARD ALL");
    } else if (strncmp(text, "deallocate ", 11) == 0) {
        struct sim_stmt *st = sim_stmt(s, text + 11);
        if (!st) {
            return sim_error(s, "26000", "prepared statement does not exist", text + 11);
        }
        st->exists = false;
        sim_tag(s, "DEALLOCATE");
    } else if (strncmp(text, "listen ", 7) == 0) {
        sim_tag(s, "LISTEN");
    } else if (strncasecmp(text, "unlisten ", 9) == 0) {
        sim_tag(s, "UNLISTEN");
    } else {
        sim_put(s, 'I', "", 0);
    }
    return true;
}

static inline bool sim_syntax(struct sim *s, const char *text)
{
    if (sim_is(text, "selec") || sim_is(text, "refused")) {
        return sim_error(s, "42601", "syntax error at or near", text);
    }
    if (s->status == 'E' && *text && !sim_ends_tx(text)) {
        return sim_aborted(s);
    }
    return true;
}

static inline void sim_ready(struct sim *s)
{
    sim_put(s, 'Z', &s->status, 1);
    sim_flush(s);
}

static inline void sim_query(struct sim *s, const char *text)
{
    struct sim_stmt st = {.shape = s->shape ? *s->shape : 1};
    struct sim_portal *p;

    (void)snprintf(st.text, sizeof st.text, "%s", text);
    if (sim_is(text, "bad bytes")) { /* refused before the old statement is dropped */
        (void)sim_error(s, "22021", "invalid byte sequence", "");
        sim_ready(s);
        return;
    }
    s->unnamed.exists = false;
    if (sim_syntax(s, text)) {
        p = sim_portal(s, "");
        if (p) {
            p->exists = false;
        }
        if (sim_width(&st)) {
            sim_columns(s, sim_width(&st));
            (void)sim_rows(s, &st);
        } else {
            (void)sim_utility(s, text);
        }
    }
    if (s->status != 'T') {
        sim_drop_portals(s);
    }
    sim_ready(s);
}

static inline bool sim_parse(struct sim *s, const char *name, const char *text)
{
    struct sim_stmt *st = *name ? NULL : &s->unnamed;

    s->parses++;
    if (sim_is(text, "bad bytes")) {
        return sim_error(s, "22021", "invalid byte sequence", "");
    }
    if (!*name) {
        s->unnamed.exists = false;
    }
    if (!sim_syntax(s, text)) {
        return false;
    }
    if (*name && sim_stmt(s, name)) {
        return sim_error(s, "42P05", "prepared statement already exists", name);
    }
    for (int i = 0; !st && i < SIM_STATEMENTS; i++) {
        st = s->stmt[i].exists ? NULL : &s->stmt[i];
    }
    prt_assert(st);
    *st = (struct sim_stmt){.exists = true, .shape = s->shape ? *s->shape : 1};
    (void)snprintf(st->name, sizeof st->name, "%s", name);
    (void)snprintf(st->text, sizeof st->text, "%s", text);
    sim_put(s, '1', "", 0);
    return true;
}

static inline bool sim_is_stale(const struct sim *s, const struct sim_stmt *st)
{
    return s->shape && sim_is(st->text, "select * from t") && st->shape != *s->shape;
}

static inline bool sim_bind(struct sim *s, const char *portal, const char *name)
{
    struct sim_stmt *st = sim_stmt(s, name);
    struct sim_portal *p = sim_portal(s, portal);

    if (!st) {
        return *name ? sim_error(s, "26000", "prepared statement does not exist", name)
                     : sim_error(s, "26000", "unnamed prepared statement does not exist", "");
    }
    if (s->status == 'E' && *st->text && !sim_ends_tx(st->text)) {
        return sim_aborted(s);
    }
    if (p && *portal) {
        return sim_error(s, "42P03", "cursor already exists", portal);
    }
    if (sim_is_stale(s, st)) {
        return sim_error(s, "0A000", "cached plan must not change result type", "");
    }
    for (int i = 0; !p; i++) {
        prt_assert(i < SIM_PORTALS);
        p = s->portal[i].exists ? NULL : &s->portal[i];
    }
    *p = (struct sim_portal){.exists = true, .stmt = *st};
    (void)snprintf(p->name, sizeof p->name, "%s", portal);
    sim_put(s, '2', "", 0);
    return true;
}

static inline bool sim_describe(struct sim *s, char kind, const char *name)
{
    struct sim_portal *p = kind == 'P' ? sim_portal(s, name) : NULL;
    struct sim_stmt *st = p ? &p->stmt : kind == 'S' ? sim_stmt(s, name) : NULL;

    if (!st && kind == 'S') {
        return *name ? sim_error(s, "26000", "prepared statement does not exist", name)
                     : sim_error(s, "26000", "unnamed prepared statement does not exist", "");
    }
    if (!st) {
        return sim_error(s, "34000", "portal does not exist", name);
    }
    /* PostgreSQL would describe what returns no rows. A pooler cannot where another server has it:
     * README.md. */
    if (s->status == 'E' && *st->text && !sim_ends_tx(st->text)) {
        return sim_aborted(s);
    }
    if (kind == 'S') {
        sim_put(s, 't', "\0", 2);
    }
    if (sim_is_stale(s, st)) {
        return sim_error(s, "0A000", "cached plan must not change result type", "");
    }
    if (sim_width(st)) {
        sim_columns(s, sim_width(st));
    } else {
        sim_put(s, 'n', "", 0);
    }
    return true;
}

static inline bool sim_execute(struct sim *s, const char *name)
{
    struct sim_portal *p = sim_portal(s, name);

    if (!p) {
        return sim_error(s, "34000", "portal does not exist", name);
    }
    if (!*p->stmt.text) {
        sim_put(s, 'I', "", 0);
        return true;
    }
    if (s->status == 'E' && !sim_ends_tx(p->stmt.text)) {
        return sim_aborted(s);
    }
    if (p->is_done && sim_width(&p->stmt)) {
        sim_tag(s, "SELECT 0");
        return true;
    }
    if (p->is_done) {
        return sim_error(s, "55000", "portal cannot be run", name);
    }
    p->is_done = true;
    return sim_width(&p->stmt) ? sim_rows(s, &p->stmt) : sim_utility(s, p->stmt.text);
}

static inline bool sim_close(struct sim *s, char kind, const char *name)
{
    struct sim_stmt *st = kind == 'S' ? sim_stmt(s, name) : NULL;
    struct sim_portal *p = kind == 'P' ? sim_portal(s, name) : NULL;

    s->closes++;
    if (st) {
        st->exists = false;
    }
    if (p) {
        p->exists = false;
    }
    sim_put(s, '3', "", 0);
    return true;
}

static inline bool sim_extended(struct sim *s, uint8_t type, const char *a)
{
    switch (type) {
    case 'P':
        return sim_parse(s, a, a + strlen(a) + 1);
    case 'B':
        return sim_bind(s, a, a + strlen(a) + 1);
    case 'D':
        return sim_describe(s, a[0], a + 1);
    case 'E':
        return sim_execute(s, a);
    default:
        return sim_close(s, a[0], a + 1);
    }
}

/* One message of its client's. */
static inline void sim_message(struct sim *s, uint8_t type, const uint8_t *body)
{
    if (type == 'H') {
        sim_flush(s);
    } else if (type == 'S') {
        s->skips = false;
        if (s->status != 'T') {
            sim_drop_portals(s);
        }
        sim_ready(s);
    } else if (s->skips) {
        return;
    } else if (type == 'Q') {
        sim_query(s, (const char *)body);
    } else if (!sim_extended(s, type, (const char *)body)) {
        s->skips = true;
    }
}

/* The first message of p[n], if it is whole. Returns its size. */
static inline size_t sim_feed(struct sim *s, const uint8_t *p, size_t n)
{
    size_t size = n >= 5 ? 1 + (size_t)prt_get32(p + 1) : 0;

    if (!size || size > n) {
        return 0;
    }
    sim_message(s, p[0], p + 5);
    return size;
}

static inline void sim_fini(struct sim *s)
{
    prt_buf_free(&s->held);
    prt_buf_free(&s->out);
}
#endif
