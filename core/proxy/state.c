/* state.c - what clients do to the sessions of servers that they share: settings follow them to
 * their next server, subscriptions go to the listener connection, and for all else the pool's rule
 * holds: the server stays with its client, is cleaned, or the statement is refused. Owns: nothing;
 * it drives one server and the client that leases it.   Threads: their worker. Idea: pg/session.c
 * knows what there is, this file what is to be done about it, relay.c when. */
#include "proxy/proxy_int.h"

#include <sys/socket.h>

static enum prt_state_rule rule_of(const struct prt_pool_config *row, enum prt_state_kind kind)
{
    return (enum prt_state_rule)row->session_state[kind];
}

static const struct prt_pool_config *row_of(const struct prt_server *s)
{
    /* acquire: pairs with the release store of a reload */
    return atomic_load_explicit(&s->pool->cfg, memory_order_acquire);
}

/* The kinds of `states` that have the rule. */
static unsigned ruled(const struct prt_pool_config *row, unsigned states, enum prt_state_rule rule)
{
    unsigned found = 0;

    for (unsigned k = 0; states >> k; k++) {
        if (states >> k & 1 && rule_of(row, (enum prt_state_kind)k) == rule) {
            found |= 1u << k;
        }
    }
    return found;
}

bool prt_state_fans_out(const struct prt_pool_config *row)
{
    enum prt_state_rule rule = rule_of(row, PRT_STATE_LISTEN);

    return rule == PRT_STATE_PIN || rule == PRT_STATE_RESET;
}

/* ---- may it run? ---- */

#define DENIED(what)                                                                               \
    {                                                                                              \
        "0A000", what " cannot be used in this pool",                                              \
            "Its session_state is \"refuse\": servers are shared by all clients. Use a pool with " \
            "session_state = \"pin\" or mode = \"session\".",                                      \
            NULL                                                                                   \
    }
static const struct prt_denial denied[PRT_STATE_COUNT] = {
    [PRT_STATE_TEMP] = DENIED("a temporary object"),
    [PRT_STATE_HOLD] = DENIED("a cursor WITH HOLD"),
    [PRT_STATE_ADVISORY] = DENIED("a session-level advisory lock"),
    [PRT_STATE_LISTEN] = DENIED("LISTEN"),
    [PRT_STATE_PREPARE] = DENIED("PREPARE"),
    [PRT_STATE_ROLE] = DENIED("SET ROLE or SET SESSION AUTHORIZATION"),
    [PRT_STATE_SETTING] = DENIED("a setting that poolrt cannot make again on another server"),
    [PRT_STATE_OPAQUE] = DENIED("a statement whose effect on the session cannot be known"),
};
static const struct prt_denial not_heard = {
    "08006", "LISTEN failed: poolrt has no listener connection to the server",
    "The log of poolrt says why (event listen_failed).", NULL};

ON_WORKER static enum prt_may may_listen(struct prt_client *c, struct prt_str channel,
                                         const struct prt_denial **why)
{
    struct prt_err err;
    poolrt_rc rc = POOLRT_IO;

    if (c->is_listening) {
        return PRT_MAY_WAIT;
    }
    if (!c->cannot_listen) {
        rc = prt_listen_add(c, channel, &err);
    }
    if (rc == POOLRT_PENDING) {
        c->is_listening = true;
        return PRT_MAY_WAIT;
    }
    c->cannot_listen = false;
    *why = &not_heard;
    return rc == POOLRT_OK ? PRT_MAY_RUN : PRT_MAY_NOT;
}

/* All channels of the text, one after the other. */
ON_WORKER static enum prt_may may_listen_all(struct prt_client *c, const struct prt_effects *e,
                                             const struct prt_denial **why)
{
    enum prt_may may = PRT_MAY_RUN;
    unsigned n = 1;

    for (unsigned i = 0; i < n && may == PRT_MAY_RUN; i++) {
        const struct prt_sql_stmt *st = prt_effects_listen(e, i, &n);
        may = st ? may_listen(c, st->name, why) : may;
    }
    return may;
}

static bool is_same(const struct prt_params *set, struct prt_str name, struct prt_str value)
{
    struct prt_str has;

    return prt_params_get(set, name, &has) && prt_str_eq(has, value);
}

#define RESETS (PRT_SQL(RESET) | PRT_SQL(RESET_ALL) | PRT_SQL(DISCARD_ALL))

/* ---- RESET ----
 * It takes a setting to what the server's own login said, which was another client's, or nobody's.
 * So the server's reports are changed into what this client's login said, what it does not report
 * (its value stays) is added, and the settings follow: at the next lease, or at once when this one
 * goes on. One at a time, so that it is known which reports are meant. */

/* A RESET begins that takes the client from what it was told to `want`, which is taken. */
ON_WORKER static void begin(struct prt_server *s, const struct prt_params *want)
{
    prt_state_end_reset(s);
    s->reset_to = want;
    s->reset_from = prt_params_ref(s->client->params);
    s->reset_failed = false;
}

void prt_state_end_reset(struct prt_server *s)
{
    if (!s->reset_to) {
        return;
    }
    prt_params_unref(s->reset_to);
    prt_params_unref(s->reset_from);
    s->reset_to = s->reset_from = NULL;
}

ON_WORKER static enum prt_may may_run_reset(struct prt_server *s, const struct prt_client *c,
                                            const struct prt_effects *e)
{
    const struct prt_params *want;

    if (s->startup == c->startup || !prt_effects_resets(e, c->params, c->startup, &want)) {
        return PRT_MAY_RUN;
    }
    if (prt_txn_owed(&s->txn)) {
        prt_params_unref(want);
        return PRT_MAY_WAIT;
    }
    begin(s, want);
    return PRT_MAY_RUN;
}

bool prt_state_may_reset(struct prt_client *c, const struct prt_msg *m)
{
    struct prt_server *s = c->server;
    struct prt_str sql;
    bool failed = false, may = true;

    if (s->startup == c->startup || (m->type != 'Q' && m->type != 'P') || s->txn.skips ||
        !prt_msg_string(m, m->type == 'P', &sql) || prt_sql_is_plain(sql)) {
        return true;
    }
    struct prt_effects *e = prt_effects_of(sql, true, &failed);
    if (m->type == 'Q') {
        may = !e || may_run_reset(s, c, e) == PRT_MAY_RUN;
    } else if (e && prt_effects_flags(e) & RESETS) {
        prt_effects_unref(s->parsed);
        s->parsed = prt_effects_ref(e);
    }
    prt_effects_unref(e);
    return may;
}

ON_WORKER static void begin_by_tag(struct prt_server *s, const struct prt_effects *e)
{
    const struct prt_params *want;

    if (e && prt_effects_resets(e, s->client->params, s->client->startup, &want)) {
        begin(s, want);
    }
}

/* In session mode nobody knows which statement an Execute runs: the tag RESET is taken for that of
 * the last one that was parsed and resets something. */
void prt_state_tag(struct prt_server *s, const struct prt_msg *m)
{
    struct prt_str tag;
    bool failed = false;

    if (!prt_msg_string(m, 0, &tag)) {
        return;
    }
    if (s->reset_to) {
        s->reset_failed |= prt_str_eqz(tag, "ROLLBACK");
    } else if (prt_str_eqz(tag, "RESET")) {
        begin_by_tag(s, s->parsed);
    } else if (prt_str_eqz(tag, "DISCARD ALL") && s->startup != s->client->startup) {
        struct prt_effects *all = prt_effects_of(PRT_STR("DISCARD ALL"), true, &failed);
        begin_by_tag(s, all);
        prt_effects_unref(all);
    }
}

void prt_state_error(struct prt_server *s)
{
    s->reset_failed = true;
}

/* What the client must be told before its ReadyForQuery. */
ON_WORKER static bool tell_reset(struct prt_server *s, struct prt_buf *out)
{
    struct prt_client *c = s->client;
    struct prt_str name, value, was;
    bool told = false;

    for (unsigned i = 0; i < prt_params_count(s->reset_to); i++) {
        prt_params_at(s->reset_to, i, &name, &value);
        bool is_meant = prt_params_get(s->reset_from, name, &was) && !prt_str_eq(was, value);
        if (is_meant && is_same(c->params, name, was)) {
            prt_put_param(out, name, value);
            c->params = prt_params_with(c->params, name, value);
            told = true;
        }
    }
    return told;
}

enum prt_may prt_state_may_run(void *ctx, const struct prt_effects *e,
                               const struct prt_denial **why)
{
    struct prt_client *c = ctx;
    const struct prt_pool_config *row = prt_client_row(c);
    enum prt_may may = PRT_MAY_RUN;
    unsigned refused = ruled(row, prt_effects_states(e), PRT_STATE_REFUSE);

    if (refused) {
        *why = &denied[__builtin_ctz(refused)];
        return PRT_MAY_NOT;
    }
    if (prt_effects_fans_out(e) && prt_state_fans_out(row)) {
        may = may_listen_all(c, e, why);
    }
    return may == PRT_MAY_RUN ? may_run_reset(c->server, c, e) : may;
}

/* ---- settings ---- */

static void take(const struct prt_params **to, const struct prt_params *from)
{
    const struct prt_params *old = *to;

    if (old == from) {
        return;
    }
    *to = prt_params_ref(from);
    prt_params_unref(old);
}

/* What the client was told, or has set, and the server has not. Values that a server of this class
 * has accepted before go out with the client's first message; others are awaited, since that
 * message must not run under wrong settings. */
ON_WORKER static void sync(struct prt_server *s, struct prt_buf *sql, bool is_sure)
{
    struct prt_str text = {(const char *)prt_buf_data(sql), prt_buf_len(sql)};

    if (sql->failed || !prt_txn_inject(&s->txn, 'Q', 0)) {
        (void)shutdown(s->sock.fd, SHUT_RDWR);
    } else if (is_sure) {
        s->is_sync_ahead = true;
        prt_put_query(&s->ahead, text);
    } else {
        struct prt_buf q = {0};
        s->is_syncing = true;
        prt_put_query(&q, text);
        prt_server_send_buf(s, &q);
    }
}

void prt_state_verified(struct prt_client *c)
{
    if (!c->is_verified) {
        c->is_verified = true;
        take(&c->startup, c->params); /* the same settings, as servers spell them */
    }
}

/* A query is read in the encoding that is set when it comes: until the client's is, its journal has
 * to wait if it is not all ASCII. */
static bool is_recoded(const struct prt_server *s, const struct prt_client *c)
{
    struct prt_str theirs;

    return prt_params_get(c->params, PRT_STR("client_encoding"), &theirs) &&
           !is_same(s->params, PRT_STR("client_encoding"), theirs) &&
           !(prt_params_is_ascii(s->session.settled) && prt_params_is_ascii(c->journal));
}

ON_WORKER static unsigned diff_journal(struct prt_server *s, const struct prt_params *journal,
                                       struct prt_buf *sql, bool *is_sure)
{
    unsigned n = prt_journal_diff(s->session.settled, journal, sql, is_sure);

    take(&s->session.settled, journal);
    take(&s->session.now, journal);
    return n;
}

ON_WORKER static void bring_settings(struct prt_server *s, struct prt_client *c)
{
    struct prt_buf sql = {0};
    bool is_sure, is_journal_sure = true;
    unsigned n = prt_params_diff(s->params, c->params, &sql);

    is_sure = n == 0 || c->is_verified;
    s->owes_journal = n && is_recoded(s, c);
    if (!s->owes_journal) {
        n += diff_journal(s, c->journal, &sql, &is_journal_sure);
    }
    if (n) {
        sync(s, &sql, is_sure && is_journal_sure && !s->owes_journal);
    }
    prt_buf_free(&sql);
}

bool prt_state_follow_up(struct prt_server *s)
{
    struct prt_buf sql = {0};
    bool is_sure, waits = s->owes_journal;

    s->owes_journal = false;
    waits = waits && diff_journal(s, s->client->journal, &sql, &is_sure);
    if (waits) {
        sync(s, &sql, false);
    }
    prt_buf_free(&sql);
    return waits;
}

void prt_state_link(struct prt_server *s, struct prt_client *c)
{
    s->owes_journal = false;
    take(&s->session.channels_settled, c->channels);
    take(&s->session.channels, c->channels);
    s->session.fans_out = prt_state_fans_out(row_of(s));
    if (s->params == c->params) {
        prt_state_verified(c);
    }
    if (s->params != c->params || s->session.settled != c->journal) {
        bring_settings(s, c);
    }
}

ON_WORKER static void count_statements(struct prt_server *s)
{
    struct prt_stmt_counts *n = &s->stmts.n;

    if (n->hits | n->misses | n->saved) {
        struct prt_pool_lane *lane = prt_pools_lane(s->pool, s->worker->lane);
        prt_count(&lane->hits, n->hits);
        prt_count(&lane->misses, n->misses);
        prt_count(&lane->evictions, n->evictions);
        prt_count(&lane->parses_saved, n->saved);
        *n = (struct prt_stmt_counts){0};
    }
}

void prt_state_unlink(struct prt_server *s, struct prt_client *c)
{
    count_statements(s);
    take(&c->journal, s->session.settled);
    take(&c->channels, s->session.channels_settled);
}

bool prt_state_param(struct prt_server *s, struct prt_str name, struct prt_str value, bool is_ours,
                     struct prt_buf *out)
{
    struct prt_client *c = s->client;
    struct prt_str told;

    s->params = prt_params_with(s->params, name, value);
    if (is_ours || !c) {
        return false;
    }
    if (prt_str_eqz(name, "client_encoding")) {
        prt_session_recoded(&s->session);
    }
    bool is_reset = s->reset_to && prt_params_is_tracked(name) &&
                    is_same(s->startup, name, value) && prt_params_get(s->reset_to, name, &told);
    if (!is_reset) {
        c->params = prt_params_with(c->params, name, value);
        return false;
    }
    if (!is_same(c->params, name, told)) {
        prt_put_param(out, name, told);
        c->params = prt_params_with(c->params, name, told);
    }
    return true;
}

/* ---- subscriptions ---- */

ON_WORKER static void drop_subscriptions(struct prt_client *c, const struct prt_params *channels)
{
    const void *at = NULL;
    struct prt_str channel;

    while (prt_listen_next(c, &at, &channel)) {
        if (!prt_session_has_channel(channels, channel)) {
            prt_listen_del(c, channel);
        }
    }
}

void prt_state_restore(struct prt_server *s)
{
    struct prt_buf sql = {0};

    if (s->params != s->client->params && s->txn.status != 'E' && !s->is_syncing &&
        prt_params_diff(s->params, s->client->params, &sql)) {
        sync(s, &sql, false);
        prt_stmts_lose_unnamed(&s->stmts, s->client->names);
    }
    prt_buf_free(&sql);
}

bool prt_state_ready(struct prt_server *s, struct prt_buf *out)
{
    struct prt_client *c = s->client;
    bool told = s->reset_to && !s->reset_failed && tell_reset(s, out);

    prt_state_end_reset(s);
    /* a LISTEN that is on its way is in no committed set yet */
    if (s->txn.status == 'I' && c->ears && !c->is_listening && prt_txn_is_settled(&s->txn)) {
        drop_subscriptions(c, s->session.channels_settled);
    }
    return told;
}

/* ---- what cannot follow ---- */

ON_WORKER static void show_pins(struct prt_server *s, unsigned pinned)
{
    struct prt_pool_lane *lane = prt_pools_lane(s->pool, s->worker->lane);

    for (unsigned k = 0; k < PRT_STATE_COUNT; k++) {
        unsigned was = s->pinned >> k & 1, is = pinned >> k & 1;
        if (is && !was) {
            prt_count(&lane->pins[k], 1);
            prt_count(&lane->pinned[k], 1);
        } else if (was && !is) {
            prt_count(&lane->pinned[k], UINT64_MAX); /* one less */
        }
    }
    s->pinned = (uint16_t)pinned;
}

bool prt_state_pins(struct prt_server *s)
{
    unsigned pinned = ruled(row_of(s), s->session.dirty_settled, PRT_STATE_PIN);

    if (pinned != s->pinned) {
        show_pins(s, pinned);
    }
    return pinned != 0;
}

unsigned prt_state_dirt(const struct prt_server *s, bool is_left)
{
    unsigned dirty = s->session.dirty_settled | s->session.dirty;
    unsigned kept = is_left ? 0 : ruled(row_of(s), dirty, PRT_STATE_PIN);

    return dirty & ~kept & ~ruled(row_of(s), dirty, PRT_STATE_OFF);
}

void prt_state_abandon(struct prt_server *s)
{
    count_statements(s);
    if (s->pinned) {
        show_pins(s, 0);
    }
}
