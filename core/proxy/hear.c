/* hear.c - what is said on the connection that listens: LISTEN, UNLISTEN, and what it hears.
 * Owns: a hub's channels, the orders to its server.   Threads: the hub's home worker.
 * Idea: the server is asked by simple queries, several at a time, and a channel counts as listened
 * to from the tag of its LISTEN on, not before. Everything heard goes to the workers by mail, in
 * the order in which it came; mail between two threads keeps its order, so an answer "it listens"
 * stands in the same place of that order as in the server's stream. A connection that is lost is a
 * gap in what clients hear: it is announced when it begins and when it is over, that is when every
 * channel is back. */
#include "proxy/listen_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIPE_MAX 64        /* orders that are not answered */
#define PACKET_MAX 1000000 /* nothing that a LISTEN gives is longer, but a report may be */

/* ---- the gap ---- */

ON_WORKER static void gap_begins(struct prt_hub *h, const char *why)
{
    h->is_deaf = true;
    h->deaf_since_us = h->home->now_us;
    prt_count(&h->gaps, 1);
    prt_log(PRT_LOG_WARN, "listen_gap", prt_kv_z("pool", h->pool->name),
            prt_kv_z("database", h->dbname), prt_kv_int("channels", h->missing),
            prt_kv_z("error", why),
            prt_kv_z("effect", "what is notified until it is over is lost"));
}

ON_WORKER static void gap_ends(struct prt_hub *h)
{
    if (!h->is_deaf || h->missing) {
        return;
    }
    h->is_deaf = false;
    prt_log(PRT_LOG_WARN, "listen_gap_over", prt_kv_z("pool", h->pool->name),
            prt_kv_z("database", h->dbname),
            prt_kv_int("channels", (int64_t)prt_counted(&h->channels_on)),
            prt_kv_int("gap_ms", (h->home->now_us - h->deaf_since_us) / 1000));
}

/* ---- channels ---- */

static struct prt_channel *channel_of(const struct prt_hub *h, struct prt_str name)
{
    struct prt_map_node *node = prt_map_get(&h->channels, name);

    return node ? prt_container_of(node, struct prt_channel, node) : NULL;
}

static struct prt_channel *channel_new(struct prt_hub *h, const char *name)
{
    struct prt_channel *ch = calloc(1, sizeof *ch);

    if (!ch || !prt_str_copy(ch->name, sizeof ch->name, prt_str_of(name)) ||
        !prt_map_put(&h->channels, &ch->node, prt_str_of(ch->name))) {
        free(ch);
        return NULL;
    }
    prt_list_init(&ch->order.link);
    prt_list_init(&ch->branches);
    prt_list_init(&ch->waiting);
    prt_list_init(&ch->riding);
    return ch;
}

ON_WORKER static void set_on(struct prt_hub *h, struct prt_channel *ch, bool on)
{
    if (ch->is_on != on) {
        ch->is_on = on;
        prt_count(&h->channels_on, on ? 1 : UINT64_MAX);
    }
}

ON_WORKER static void channel_free(struct prt_hub *h, struct prt_channel *ch)
{
    prt_assert(prt_list_empty(&ch->branches) && prt_list_empty(&ch->waiting) &&
               prt_list_empty(&ch->riding));
    if (h->is_deaf && ch->was_on && !ch->is_on) {
        h->missing--;
    }
    set_on(h, ch, false);
    prt_list_del(&ch->order.link);
    prt_map_del(&h->channels, &ch->node);
    free(ch);
    gap_ends(h);
}

/* The branch is its worker's again. */
ON_WORKER static void answer(struct prt_branch *b, enum prt_branch_word word,
                             const struct prt_err *why)
{
    prt_list_del(&b->of_answer);
    if (why) {
        b->why = malloc(sizeof *b->why);
        if (b->why) {
            *b->why = *why;
        }
    }
    b->word = (uint8_t)word;
    b->mail.deliver = prt_branch_answered;
    prt_mailbox_post(&b->hub->pool->px->worker[b->lane].mail, &b->mail);
}

ON_WORKER static void answer_all(struct prt_link *list, enum prt_branch_word word,
                                 const struct prt_err *why)
{
    while (!prt_list_empty(list)) {
        answer(prt_container_of(list->next, struct prt_branch, of_answer), word, why);
    }
}

/* There is no connection: whoever waits is told, and what nobody wants is forgotten. */
ON_WORKER static void take_back(struct prt_hub *h, enum prt_branch_word word,
                                const struct prt_err *why)
{
    for (struct prt_map_node *n = prt_map_next(&h->channels, NULL), *next; n; n = next) {
        struct prt_channel *ch = prt_container_of(n, struct prt_channel, node);
        next = prt_map_next(&h->channels, n);
        answer_all(&ch->riding, word, why);
        answer_all(&ch->waiting, word, why);
        prt_list_del(&ch->order.link);
        ch->order.kind = PRT_ORDER_NONE;
        ch->order.is_answered = false;
        while (word == PRT_REFUSED && !prt_list_empty(&ch->branches)) {
            prt_list_del(ch->branches.next);
        }
        if (prt_list_empty(&ch->branches)) {
            channel_free(h, ch);
        }
    }
}

/* ---- orders ---- */

/* LISTEN "name", or UNLISTEN: whatever the name is, it stays one. */
static void put_sql(struct prt_buf *out, const char *verb, const char *name)
{
    char sql[32 + 2 * PRT_NAME_MAX];
    size_t n = (size_t)snprintf(sql, sizeof sql, "%s\"", verb);

    for (; *name; name++) {
        sql[n++] = *name;
        if (*name == '"') {
            sql[n++] = '"';
        }
    }
    sql[n++] = '"';
    prt_put_query(out, (struct prt_str){sql, n});
}

ON_WORKER static void sent(struct prt_hub *h, struct prt_order *o, enum prt_order_kind kind)
{
    o->kind = (uint8_t)kind;
    o->is_answered = false;
    prt_list_push(&h->sent, &o->link);
    h->n_sent++;
    prt_assert(prt_txn_inject(&h->txn, 'Q', 0)); /* PIPE_MAX is far below its room */
}

/* What the channel needs now is asked for. */
ON_WORKER static void give_order(struct prt_hub *h, struct prt_channel *ch)
{
    ch->order.kind = PRT_ORDER_NONE;
    if (!prt_list_empty(&ch->branches)) {
        while (!prt_list_empty(&ch->waiting)) {
            struct prt_link *l = prt_list_pop(&ch->waiting);
            prt_list_push(&ch->riding, l);
        }
        put_sql(&h->out, "LISTEN ", ch->name);
        sent(h, &ch->order, PRT_ORDER_LISTEN);
    } else if (ch->is_on) {
        put_sql(&h->out, "UNLISTEN ", ch->name);
        sent(h, &ch->order, PRT_ORDER_UNLISTEN);
    } else {
        channel_free(h, ch);
    }
}

/* OPEN: all that can be asked now. */
ON_WORKER static void send_orders(struct prt_hub *h)
{
    bool had_channels = h->channels.n > 0;

    while (h->n_sent < PIPE_MAX && !prt_list_empty(&h->todo)) {
        struct prt_link *l = prt_list_pop(&h->todo);
        struct prt_order *o = prt_container_of(l, struct prt_order, link);
        give_order(h, prt_container_of(o, struct prt_channel, order));
    }
    prt_hub_flush(h);
    if (had_channels && h->channels.n == 0) {
        prt_hub_set_alarm(h);
    }
}

/* Does the channel need an order? Then it gets in line; one at a time. */
ON_WORKER static void queue_order(struct prt_hub *h, struct prt_channel *ch)
{
    bool is_wanted = !prt_list_empty(&ch->branches);
    bool is_due = is_wanted ? !prt_list_empty(&ch->waiting) || (ch->was_on && !ch->is_on) : true;

    if (h->state == PRT_HUB_OPEN && ch->order.kind == PRT_ORDER_NONE && is_due) {
        ch->order.kind = PRT_ORDER_QUEUED;
        prt_list_push(&h->todo, &ch->order.link);
    }
}

/* ---- the connection comes and goes ---- */

/* What was sent on the last one will not be answered. */
static void forget_orders(struct prt_hub *h)
{
    prt_list_init(&h->todo);
    prt_list_init(&h->sent);
    h->n_sent = 0;
    h->ping = (struct prt_order){.kind = PRT_ORDER_NONE};
    prt_list_init(&h->ping.link);
}

void prt_hear_begin(struct prt_hub *h)
{
    prt_txn_init(&h->txn);
    h->frame = (struct prt_frame){0};
    forget_orders(h);
    for (struct prt_map_node *n = prt_map_next(&h->channels, NULL); n;
         n = prt_map_next(&h->channels, n)) {
        queue_order(h, prt_container_of(n, struct prt_channel, node));
    }
    send_orders(h);
}

void prt_hear_ping(struct prt_hub *h)
{
    prt_put_query(&h->out, PRT_STR(""));
    sent(h, &h->ping, PRT_ORDER_PING);
    prt_hub_flush(h);
}

void prt_hear_not_yet(struct prt_hub *h, const struct prt_err *why)
{
    take_back(h, PRT_NOT_YET, why);
}

void prt_hear_lost(struct prt_hub *h, const struct prt_err *why)
{
    bool was_deaf = h->is_deaf;

    h->is_deaf = false; /* so that what goes now is not counted as missing */
    take_back(h, PRT_NOT_YET, why);
    forget_orders(h);
    h->missing = 0;
    for (struct prt_map_node *n = prt_map_next(&h->channels, NULL); n;
         n = prt_map_next(&h->channels, n)) {
        struct prt_channel *ch = prt_container_of(n, struct prt_channel, node);
        set_on(h, ch, false);
        h->missing += ch->was_on;
    }
    h->is_deaf = was_deaf;
    if (h->missing && !was_deaf) {
        gap_begins(h, why->text);
    }
    gap_ends(h);
}

void prt_hear_end(struct prt_hub *h)
{
    struct prt_err err;

    (void)prt_fail(&err, POOLRT_DRAINING, "the pool is being closed");
    h->is_deaf = false;
    take_back(h, PRT_REFUSED, &err);
    forget_orders(h);
}

/* ---- what workers ask ---- */

ON_WORKER static void forget(struct prt_hub *h, struct prt_branch *b)
{
    struct prt_channel *ch = channel_of(h, prt_str_of(b->name));

    prt_list_del(&b->of_channel);
    if (ch && prt_list_empty(&ch->branches)) {
        if (h->state == PRT_HUB_OPEN) {
            queue_order(h, ch);
            send_orders(h);
        } else {
            channel_free(h, ch);
        }
    }
    prt_hub_unwanted(h);
    answer(b, PRT_FORGOTTEN, NULL);
}

ON_WORKER static void listen_for(struct prt_hub *h, struct prt_branch *b)
{
    struct prt_channel *ch = channel_of(h, prt_str_of(b->name));
    bool is_first = h->channels.n == 0;
    struct prt_err err;

    if (prt_hub_is_ending(h)) {
        (void)prt_fail(&err, POOLRT_DRAINING, "the pool is being closed");
        answer(b, PRT_REFUSED, &err);
        return;
    }
    ch = ch ? ch : channel_new(h, b->name);
    if (!ch) {
        (void)prt_fail(&err, POOLRT_NOMEM, "no memory to listen");
        answer(b, PRT_REFUSED, &err);
        return;
    }
    if (prt_list_empty(&b->of_channel)) {
        prt_list_push(&ch->branches, &b->of_channel);
    }
    prt_list_push(&ch->waiting, &b->of_answer);
    if (h->state == PRT_HUB_OFF) {
        prt_hub_dial(h);
    } else if (h->state == PRT_HUB_OPEN) {
        queue_order(h, ch);
        send_orders(h);
        if (is_first) {
            prt_hub_set_alarm(h);
        }
    }
}

void prt_hub_asked(void *owner, struct prt_mail *mail)
{
    struct prt_branch *b = prt_container_of(mail, struct prt_branch, mail);

    prt_assert_worker();
    prt_assert(b->hub->home == owner);
    if (b->word == PRT_ASK_FORGET) {
        forget(b->hub, b);
    } else {
        prt_assert(b->word == PRT_ASK_LISTEN);
        listen_for(b->hub, b);
    }
}

/* ---- what the server says ---- */

/* One copy for each worker that wants it. */
ON_WORKER static bool hand_out(struct prt_hub *h, const struct prt_channel *ch,
                               const struct prt_msg *m)
{
    struct prt_proxy *px = h->pool->px;

    for (struct prt_link *l = ch->branches.next; l != &ch->branches; l = l->next) {
        struct prt_branch *b = prt_container_of(l, struct prt_branch, of_channel);
        struct prt_letter *letter =
            PRT_FAULT("listen_letter") ? NULL : malloc(sizeof *letter + 5 + m->len);
        if (!letter) {
            return false;
        }
        letter->branch = b;
        letter->n = 5 + m->len;
        letter->m[0] = 'A';
        prt_put32(letter->m + 1, m->len + 4);
        memcpy(letter->m + 5, m->body, m->len);
        letter->mail.deliver = prt_letter_come;
        prt_mailbox_post(&px->worker[b->lane].mail, &letter->mail);
    }
    return true;
}

/* pid, channel, payload: two strings and nothing behind them. */
ON_WORKER static bool notified(struct prt_hub *h, const struct prt_msg *m)
{
    struct prt_msg text = *m;
    struct prt_str name, payload;

    if (m->have != m->len || m->len < 6) {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "malformed notification");
    }
    text.body += 4;
    text.len = text.have = m->len - 4;
    if (!prt_msg_string(&text, 0, &name) || !prt_msg_string(&text, 1, &payload) ||
        name.n + payload.n + 2 != text.len) {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "malformed notification");
    }
    prt_count(&h->notifications, 1);
    const struct prt_channel *ch = channel_of(h, name);
    if (ch && !hand_out(h, ch, m)) {
        return prt_hub_broken(h, POOLRT_NOMEM, "no memory for a notification");
    }
    return true;
}

static struct prt_order *oldest(const struct prt_hub *h)
{
    return prt_list_empty(&h->sent) ? NULL : prt_container_of(h->sent.next, struct prt_order, link);
}

/* CommandComplete: the transaction of the LISTEN is over, what is notified from now on is heard. */
ON_WORKER static bool done(struct prt_hub *h, const struct prt_msg *m)
{
    struct prt_order *o = oldest(h);
    struct prt_str tag;

    if (!o || o->is_answered || o->kind == PRT_ORDER_PING || !prt_msg_string(m, 0, &tag) ||
        !prt_str_eqz(tag, o->kind == PRT_ORDER_LISTEN ? "LISTEN" : "UNLISTEN")) {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "not the answer to a LISTEN");
    }
    struct prt_channel *ch = prt_container_of(o, struct prt_channel, order);
    o->is_answered = true;
    if (o->kind == PRT_ORDER_UNLISTEN) {
        set_on(h, ch, false);
        ch->was_on = false;
        return true;
    }
    if (h->is_deaf && ch->was_on && !ch->is_on) {
        h->missing--;
    }
    set_on(h, ch, true);
    ch->was_on = true;
    answer_all(&ch->riding, PRT_IS_HEARD, NULL);
    gap_ends(h);
    return true;
}

/* A LISTEN that fails is the asker's business, unless somebody has been told already that it hears:
 * then this server (a standby?) cannot serve, and another connection is tried. */
ON_WORKER static bool failed(struct prt_hub *h, const struct prt_msg *m)
{
    struct prt_order *o = oldest(h);
    struct prt_notice say;
    struct prt_err err;

    prt_notice_read(m, &say);
    (void)prt_fail(&err, POOLRT_CONNECT_FAILED, PRT_STR_FMT, PRT_STR_ARG(say.message));
    if (!prt_str_copy(err.sqlstate, sizeof err.sqlstate, say.sqlstate) || !o || o->is_answered) {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "an error that answers nothing");
    }
    o->is_answered = true;
    if (o->kind == PRT_ORDER_LISTEN) {
        struct prt_channel *ch = prt_container_of(o, struct prt_channel, order);
        if (ch->is_on || !ch->was_on) {
            answer_all(&ch->riding, PRT_REFUSED, &err);
            return true;
        }
    }
    prt_hub_lost(h, &err);
    return false;
}

ON_WORKER static bool ready(struct prt_hub *h)
{
    struct prt_order *o = oldest(h);

    if (!o || !o->is_answered || h->txn.status != 'I') {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "ready without an answer");
    }
    prt_list_del(&o->link);
    h->n_sent--;
    bool is_ping = o->kind == PRT_ORDER_PING;
    o->kind = PRT_ORDER_NONE;
    o->is_answered = false;
    if (!is_ping) {
        queue_order(h, prt_container_of(o, struct prt_channel, order));
    }
    send_orders(h);
    return true;
}

ON_WORKER static bool fatal(struct prt_hub *h, const struct prt_msg *m)
{
    struct prt_notice say;
    struct prt_err err;

    prt_notice_read(m, &say);
    (void)prt_fail(&err, POOLRT_IO, PRT_STR_FMT, PRT_STR_ARG(say.message));
    prt_hub_lost(h, &err);
    return false;
}

/* false: the connection is over, and the hub is not to be looked at. */
ON_WORKER static bool message(struct prt_hub *h, const struct prt_msg *m)
{
    struct prt_order *o = oldest(h);
    uint32_t ev = prt_txn_server(&h->txn, m);

    if (ev & PRT_EV_VIOLATION) {
        return prt_hub_broken(h, POOLRT_PROTOCOL, "the server broke the protocol");
    }
    switch (m->type) {
    case 'A':
        return notified(h, m);
    case 'C':
        return done(h, m);
    case 'Z':
        return ready(h);
    case 'E':
        return ev & PRT_EV_FATAL ? fatal(h, m) : failed(h, m);
    case 'N':
    case 'S':
        return true;
    case 'I':
        if (o && o->kind == PRT_ORDER_PING && !o->is_answered) {
            o->is_answered = true;
            return true;
        }
        break;
    default:
        break;
    }
    return prt_hub_broken(h, POOLRT_PROTOCOL, "not the answer to a LISTEN");
}

size_t prt_hear_bytes(struct prt_hub *h, const uint8_t *p, size_t n)
{
    enum prt_frame_rc rc;
    struct prt_msg m;
    size_t at = 0;

    do {
        rc = prt_frame_next(&h->frame, PRT_BACKEND, p + at, n - at, PACKET_MAX, &m);
        if (rc == PRT_FRAME_BAD) {
            (void)prt_hub_broken(h, POOLRT_PROTOCOL, "the server broke the protocol");
            return SIZE_MAX;
        }
        if (rc == PRT_FRAME_MSG && !message(h, &m)) {
            return SIZE_MAX;
        }
        at += rc == PRT_FRAME_MORE ? 0 : m.size;
    } while (rc != PRT_FRAME_MORE);
    return at;
}
