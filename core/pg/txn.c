/* txn.c - what client and server owe each other: a queue of requests, and the answers that fit.
 * Owns: nothing; struct prt_txn lies in the lease.   Threads: any, one at a time.
 * Idea: the server is one loop over one stream, so the head of the queue is the request that it is
 * answering, and each kind of request has a fixed grammar of answers. Whatever does not fit the
 * head is a violation; nothing is guessed and nothing is resynchronised. README.md has the rules.
 */
#include "pg/pg.h"

#include <string.h>

/* An entry of the queue: kind, then bits. REFUSED lies right above the kind so that one shift in
 * `fits` tests both: nothing but an error fits a refused request. */
enum kind {
    NONE, /* the queue is empty */
    QUERY,
    CALL, /* FunctionCall */
    SYNC,
    PARSE,
    BIND,
    STATEMENT, /* Describe of a statement: ParameterDescription is due */
    DESCRIBED, /* ... and after it: RowDescription or NoData */
    PORTAL,    /* Describe of a portal */
    NEITHER,   /* Describe of anything else: PostgreSQL answers an error */
    CLOSE,
    EXECUTE,
    MARKER, /* CopyDone or CopyFail: owes nothing, shows where a COPY ends in the stream */
    LOCAL,  /* answered by the pooler as soon as it is the head: nothing was sent */
};
#define KIND 0x0f
#define REFUSED 0x10 /* sent so that it fails; the error is the pooler's refusal */
#define FITS_MASK 0x1f
#define SWALLOW 0x20  /* the pooler's own: answers stay here */
#define ANSWERED 0x40 /* QUERY, CALL: complete but for its ReadyForQuery */
#define NOTED 0x80    /* somebody keeps a note of it and counts these */

/* The last entries are kept for CopyDone, CopyFail and the pooler's own requests, so that a full
 * queue can always be brought to an end. */
#define CLIENT_MAX (PRT_TXN_QUEUE - 8)
#define MARKER_MAX (PRT_TXN_QUEUE - 4)
static_assert((PRT_TXN_QUEUE & (PRT_TXN_QUEUE - 1)) == 0, "the ring's size is a power of two");

#define B(kind) (1u << (kind))
/* For each message of the server that answers a request: the requests that it may answer. */
static const uint16_t fits[256] = {
    ['1'] = B(PARSE),
    ['2'] = B(BIND),
    ['3'] = B(CLOSE),
    ['t'] = B(STATEMENT),
    ['T'] = B(QUERY) | B(DESCRIBED) | B(PORTAL),
    ['n'] = B(DESCRIBED) | B(PORTAL),
    ['D'] = B(QUERY) | B(EXECUTE),
    ['C'] = B(QUERY) | B(EXECUTE),
    ['I'] = B(QUERY) | B(EXECUTE),
    ['s'] = B(EXECUTE),
    ['G'] = B(QUERY) | B(EXECUTE),
    ['H'] = B(QUERY) | B(EXECUTE),
    ['W'] = B(QUERY) | B(EXECUTE),
    ['V'] = B(CALL),
};

void prt_txn_init(struct prt_txn *t)
{
    t->head = t->count = t->markers = t->locals = 0;
    t->extra = 0;
    t->status = 'I';
    t->copy = PRT_COPY_NONE;
    t->is_open = t->skips = t->is_unsure = t->is_dead = false;
    t->was_noted = false;
    t->noted_gone = 0;
}

/* ---- the ring ---- */
static inline uint16_t *at(struct prt_txn *t, unsigned i)
{
    return &t->q[(t->head + i) % PRT_TXN_QUEUE];
}

static inline enum kind kind_at(const struct prt_txn *t, unsigned i)
{
    return t->q[(t->head + i) % PRT_TXN_QUEUE] & KIND;
}

static inline bool push(struct prt_txn *t, uint16_t entry, unsigned max)
{
    if (t->count >= max) {
        return false;
    }
    *at(t, t->count++) = entry;
    return true;
}

static inline void drop(struct prt_txn *t)
{
    uint16_t entry = *at(t, 0);

    t->noted_gone += entry & NOTED ? 1 : 0;
    t->locals -= (entry & KIND) == LOCAL;
    t->head = (t->head + 1) % PRT_TXN_QUEUE;
    t->count--;
}

/* Markers in front: the server ignored them, or the COPY that they ended is over. While a COPY is
 * on, its request is the head. */
static void drop_markers(struct prt_txn *t)
{
    while (t->count && kind_at(t, 0) == MARKER) {
        drop(t);
        t->markers--;
    }
}

/* The request that the server is answering; 0: none. */
static inline uint16_t head(struct prt_txn *t)
{
    if (t->markers && kind_at(t, 0) == MARKER) {
        drop_markers(t);
    }
    return t->count ? *at(t, 0) : NONE;
}

/* The same without touching the queue, for messages that may come at any time. */
static inline uint16_t peek(const struct prt_txn *t)
{
    if (!t->markers) {
        return t->count ? t->q[t->head] : NONE;
    }
    for (unsigned i = 0; i < t->count; i++) {
        if (kind_at(t, i) != MARKER) {
            return t->q[(t->head + i) % PRT_TXN_QUEUE];
        }
    }
    return NONE;
}

static inline bool ends_with_ready(uint16_t entry)
{
    return B(entry & KIND) & (B(QUERY) | B(CALL) | B(SYNC));
}

static inline uint32_t swallowed(uint16_t entry)
{
    return entry & SWALLOW ? PRT_EV_SWALLOW : 0;
}

/* Take out n entries behind the head. */
static void drop_behind_head(struct prt_txn *t, unsigned n)
{
    uint16_t first = *at(t, 0);

    for (unsigned i = 1; i <= n; i++) {
        t->markers -= kind_at(t, i) == MARKER;
        t->locals -= kind_at(t, i) == LOCAL;
    }
    t->head = (uint16_t)((t->head + n) % PRT_TXN_QUEUE);
    t->count -= (uint16_t)n;
    *at(t, 0) = first;
}

/* ---- the client's side ---- */
static enum prt_txn_rc push_request(struct prt_txn *t, enum kind kind, bool opens)
{
    if (t->skips) {
        /* the server discards it: nothing is owed; unless it stopped to, and nobody can tell */
        return t->is_unsure ? PRT_TXN_VIOLATION : PRT_TXN_FORWARD;
    }
    if (!push(t, kind, CLIENT_MAX)) {
        return PRT_TXN_FULL;
    }
    t->is_open = opens;
    return PRT_TXN_FORWARD;
}

static enum prt_txn_rc push_sync(struct prt_txn *t, uint16_t bits, unsigned max)
{
    if (!push(t, SYNC | bits, max)) {
        return PRT_TXN_FULL;
    }
    t->is_open = t->skips = t->is_unsure = false;
    return PRT_TXN_FORWARD;
}

static enum prt_txn_rc push_marker(struct prt_txn *t)
{
    if (t->copy == PRT_COPY_BOTH || t->skips || t->count == 0) {
        return PRT_TXN_FORWARD; /* outside COPY the server ignores it */
    }
    if (!push(t, MARKER, MARKER_MAX)) {
        return PRT_TXN_FULL;
    }
    t->markers++;
    return PRT_TXN_FORWARD;
}

static enum kind describe_kind(const struct prt_msg *m)
{
    if (m->have == 0) {
        return NEITHER;
    }
    return m->body[0] == 'S' ? STATEMENT : m->body[0] == 'P' ? PORTAL : NEITHER;
}

enum prt_txn_rc prt_txn_client(struct prt_txn *t, const struct prt_msg *m)
{
    switch (m->type) {
    case 'Q':
        return push_request(t, QUERY, false);
    case 'P':
        return push_request(t, PARSE, true);
    case 'B':
        return push_request(t, BIND, true);
    case 'D':
        return push_request(t, describe_kind(m), true);
    case 'E':
        return push_request(t, EXECUTE, true);
    case 'C':
        return push_request(t, CLOSE, true);
    case 'F':
        return push_request(t, CALL, false);
    case 'S':
        return m->len ? PRT_TXN_VIOLATION : push_sync(t, 0, CLIENT_MAX);
    case 'H':
        return m->len ? PRT_TXN_VIOLATION : PRT_TXN_FORWARD;
    case 'd':
        return PRT_TXN_FORWARD;
    case 'c':
    case 'f':
        return push_marker(t);
    case 'X':
        return PRT_TXN_TERMINATE;
    default:
        return PRT_TXN_VIOLATION;
    }
}

bool prt_txn_inject(struct prt_txn *t, uint8_t kind, uint8_t sub)
{
    enum kind of = kind == 'Q' ? QUERY : kind == 'P' ? PARSE : kind == 'D' ? STATEMENT : CLOSE;

    prt_assert(kind == 'Q' || kind == 'P' || kind == 'D' || kind == 'S' ||
               (kind == 'C' && (sub == 'S' || sub == 'P')));
    if (kind == 'S') {
        return push_sync(t, SWALLOW, PRT_TXN_QUEUE) == PRT_TXN_FORWARD;
    }
    if (t->skips) {
        return !t->is_unsure;
    }
    if (!push(t, (uint16_t)(of | SWALLOW), PRT_TXN_QUEUE)) {
        return false;
    }
    t->is_open = of != QUERY;
    return true;
}

void prt_txn_mark_refused(struct prt_txn *t)
{
    if (t->skips) {
        return; /* it was not counted, and what is sent instead is discarded as well */
    }
    prt_assert(t->count && kind_at(t, t->count - 1u) != MARKER);
    *at(t, t->count - 1u) |= REFUSED;
}

void prt_txn_note(struct prt_txn *t)
{
    prt_assert(t->count && kind_at(t, t->count - 1u) != MARKER);
    *at(t, t->count - 1u) |= NOTED;
}

bool prt_txn_is_noted(const struct prt_txn *t)
{
    return peek(t) & NOTED;
}

/* ---- answered here ---- */
bool prt_txn_push_local(struct prt_txn *t)
{
    prt_assert(!t->skips && t->copy == PRT_COPY_NONE);
    if (!push(t, LOCAL | NOTED, CLIENT_MAX)) {
        return false;
    }
    t->locals++;
    t->is_open = true; /* the client owes a Sync, although the server heard nothing */
    return true;
}

bool prt_txn_take_local(struct prt_txn *t)
{
    if (t->copy != PRT_COPY_NONE || (head(t) & KIND) != LOCAL) {
        return false;
    }
    drop(t);
    return true;
}

/* In COPY IN the server would end the session over the message that a local answer stands for. */
static bool has_local_in_copy(const struct prt_txn *t)
{
    for (unsigned i = 1; i < t->count && kind_at(t, i) != MARKER; i++) {
        if (kind_at(t, i) == LOCAL) {
            return true;
        }
    }
    return false;
}

bool prt_txn_has_room(const struct prt_txn *t, unsigned n)
{
    return t->count + n <= CLIENT_MAX;
}

bool prt_txn_owes_ready(const struct prt_txn *t)
{
    for (unsigned i = 0; i < t->count; i++) {
        if (B(kind_at(t, i)) & (B(QUERY) | B(CALL) | B(SYNC))) {
            return true;
        }
    }
    return t->extra != 0;
}

bool prt_txn_may_discard(const struct prt_txn *t)
{
    for (unsigned i = t->count; i > 0 && kind_at(t, i - 1) != SYNC; i--) {
        if (!(B(kind_at(t, i - 1)) & (B(QUERY) | B(CALL) | B(MARKER) | B(LOCAL)))) {
            return true;
        }
    }
    return false;
}

/* ---- the server's side ---- */
/* The Syncs behind the head: a COPY from the client reads and drops them up to its CopyDone. */
static unsigned syncs_behind_head(const struct prt_txn *t)
{
    unsigned n = 0;

    while (n + 1 < t->count && kind_at(t, n + 1) == SYNC) {
        n++;
    }
    return n;
}

/* The request of a COPY is complete. false: the server claims more than it can have read. */
PRT_COLD static bool copy_done(struct prt_txn *t)
{
    if (t->copy == PRT_COPY_IN) {
        unsigned n = syncs_behind_head(t);
        if (n + 1 >= t->count || kind_at(t, n + 1) != MARKER) {
            return false;
        }
        drop_behind_head(t, n + 1);
        if (kind_at(t, 0) == EXECUTE && prt_txn_owed(t) == 1) {
            t->is_open = true; /* COPY ate the Sync: the batch, and its transaction, go on */
        }
    }
    t->copy = PRT_COPY_NONE;
    return true;
}

/* The request of a COPY failed. The server may have failed before it read the Syncs in front of
 * CopyDone, and then answers them: nobody can tell yet. Returns how many they are. */
static unsigned copy_failed(struct prt_txn *t)
{
    unsigned n = 0;

    if (t->copy == PRT_COPY_IN) {
        n = syncs_behind_head(t);
        bool has_marker = n + 1 < t->count && kind_at(t, n + 1) == MARKER;
        t->extra += n;
        drop_behind_head(t, n + has_marker);
    }
    t->copy = PRT_COPY_NONE;
    return n;
}

static uint32_t complete(struct prt_txn *t, uint8_t type, uint16_t entry)
{
    if (t->copy != PRT_COPY_NONE && !copy_done(t)) {
        return PRT_EV_VIOLATION;
    }
    if ((entry & KIND) == EXECUTE) {
        drop(t);
    } else {
        *at(t, 0) |= ANSWERED;
        if (entry & SWALLOW) {
            t->extra =
                0; /* sent behind the failed COPY: its Syncs have been answered, or never will */
        }
    }
    return swallowed(entry) | (type == 'C' ? PRT_EV_TAG : 0);
}

PRT_COLD static uint32_t copy_begins(struct prt_txn *t, uint8_t type, uint16_t entry)
{
    if (t->copy != PRT_COPY_NONE) {
        return PRT_EV_VIOLATION;
    }
    if (type == 'G' && has_local_in_copy(t)) {
        return PRT_EV_VIOLATION;
    }
    t->copy = type == 'G' ? PRT_COPY_IN : type == 'H' ? PRT_COPY_OUT : PRT_COPY_BOTH;
    return swallowed(entry) | PRT_EV_COPY;
}

static bool ends_in_nul(const struct prt_msg *m)
{
    return m->len && m->have == m->len && m->body[m->len - 1] == 0;
}

/* A message that fits the head. */
static uint32_t answer(struct prt_txn *t, const struct prt_msg *m, uint16_t entry)
{
    switch (m->type) {
    case 'C':
        return ends_in_nul(m) ? complete(t, 'C', entry) : PRT_EV_VIOLATION;
    case 'I':
    case 's':
        return complete(t, m->type, entry);
    case 'T':
        if ((entry & KIND) == QUERY) {
            break;
        }
        drop(t);
        break;
    case 't':
        *at(t, 0) = (uint16_t)((entry & ~KIND) | DESCRIBED);
        break;
    case '1':
    case '2':
    case '3':
    case 'n':
        drop(t);
        break;
    case 'G':
    case 'H':
    case 'W':
        return copy_begins(t, m->type, entry);
    case 'V':
        *at(t, 0) |= ANSWERED;
        break;
    default:
        break;
    }
    return swallowed(entry);
}

/* Fields, each a type byte and a string, and one NUL as the very last byte. The end of a long one
 * goes by unseen, so it is not looked at even when it happens to be here. */
static bool is_notice_whole(const struct prt_msg *m)
{
    uint32_t i = 0;

    if (m->len > PRT_SMALL_MAX - 4) {
        return true;
    }
    while (i < m->len && m->body[i] != 0) {
        const uint8_t *end = memchr(m->body + i, 0, m->len - i);
        if (!end) {
            return false;
        }
        i = (uint32_t)(end - m->body) + 1;
    }
    return i > 0 && i == m->len - 1;
}

static bool is_param_whole(const struct prt_msg *m)
{
    const uint8_t *end = m->len ? memchr(m->body, 0, m->len) : NULL;
    size_t name = end ? (size_t)(end - m->body) + 1 : m->len;

    if (m->have != m->len || name == m->len) {
        return false;
    }
    end = memchr(m->body + name, 0, m->len - name);
    return end == m->body + m->len - 1;
}

PRT_COLD static uint32_t at_any_time(const struct prt_txn *t, const struct prt_msg *m)
{
    switch (m->type) {
    case 'N':
        return is_notice_whole(m) ? PRT_EV_ASYNC | swallowed(peek(t)) : PRT_EV_VIOLATION;
    case 'A':
        return m->len >= 6 && ends_in_nul(m) ? PRT_EV_ASYNC : PRT_EV_VIOLATION;
    default:
        return is_param_whole(m) ? PRT_EV_PARAM | swallowed(peek(t)) : PRT_EV_VIOLATION;
    }
}

static bool is_fatal(const struct prt_msg *m)
{
    struct prt_notice fields;

    prt_notice_read(m, &fields);
    return prt_str_eqz(fields.severity, "FATAL") || prt_str_eqz(fields.severity, "PANIC");
}

/* An error in an extended request: the server discards the rest of its batch, up to the next Sync.
 * If the failed COPY had Syncs in front of it (unsure), requests of that rest were perhaps not
 * discarded but stand behind an answered Sync: then nothing that comes can be told apart. */
static bool skip_batch(struct prt_txn *t, bool unsure)
{
    drop(t);
    while (t->count && kind_at(t, 0) != SYNC) {
        if (kind_at(t, 0) == MARKER) {
            t->markers--;
        } else if (unsure) {
            return false;
        }
        drop(t);
    }
    t->skips = t->count == 0;
    t->is_unsure = t->skips && unsure;
    return true;
}

PRT_COLD static uint32_t error(struct prt_txn *t, const struct prt_msg *m)
{
    uint16_t entry;
    uint32_t ev = PRT_EV_ERROR;
    bool unsure;

    if (!is_notice_whole(m)) {
        return PRT_EV_VIOLATION;
    }
    if (is_fatal(m)) {
        t->is_dead = true;
        return PRT_EV_ERROR | PRT_EV_FATAL;
    }
    entry = head(t);
    if ((entry & KIND) == NONE) {
        return PRT_EV_VIOLATION;
    }
    ev |= entry & REFUSED ? PRT_EV_REFUSED : 0;
    unsure = copy_failed(t) > 0;
    if (ends_with_ready(entry)) { /* its ReadyForQuery follows; nothing is skipped */
        *at(t, 0) = (uint16_t)((entry & ~REFUSED) | ANSWERED);
        return ev | swallowed(entry);
    }
    /* an injected Parse or Close fails the client's batch with it, so the client is told */
    return skip_batch(t, unsure) ? ev : PRT_EV_VIOLATION;
}

static uint32_t ready(struct prt_txn *t, const struct prt_msg *m)
{
    uint16_t entry = head(t);
    uint32_t ev = PRT_EV_READY;
    bool fits_head = ends_with_ready(entry) && !(entry & REFUSED);

    if (m->len != 1 || m->have != 1 ||
        (m->body[0] != 'I' && m->body[0] != 'T' && m->body[0] != 'E')) {
        return PRT_EV_VIOLATION;
    }
    if (t->copy != PRT_COPY_NONE) {
        return PRT_EV_VIOLATION;
    }
    /* no Query or FunctionCall is ready before it was answered: then it is a Sync of a failed COPY
     */
    if (t->extra && !(fits_head && ((entry & KIND) == SYNC || (entry & ANSWERED)))) {
        t->extra--;
        t->skips = t->is_unsure = false;
        t->is_open &= t->count != 0;
        ev |= PRT_EV_EXTRA_READY;
    } else if (fits_head) {
        drop(t);
        ev |= swallowed(entry);
    } else {
        return PRT_EV_VIOLATION;
    }
    if (t->markers) {
        drop_markers(t);
    }
    t->status = m->body[0];
    return ev;
}

/* CopyData and CopyDone of the server. */
static __attribute__((noinline)) uint32_t copy_data(struct prt_txn *t, uint8_t type)
{
    if (t->copy < PRT_COPY_OUT) {
        return PRT_EV_VIOLATION;
    }
    if (type == 'c' && t->copy == PRT_COPY_OUT) {
        t->copy = PRT_COPY_NONE;
    }
    return swallowed(*at(t, 0));
}

static __attribute__((noinline)) uint32_t any(struct prt_txn *t, const struct prt_msg *m)
{
    uint32_t may = fits[m->type];

    t->noted_gone = 0;
    t->was_noted = false;
    if (t->is_dead) {
        return PRT_EV_SWALLOW; /* its last word is said */
    }
    t->was_noted = peek(t) & NOTED;
    if (may) {
        uint16_t entry = head(t);
        return may >> (entry & FITS_MASK) & 1 ? answer(t, m, entry) : PRT_EV_VIOLATION;
    }
    switch (m->type) {
    case 'd':
    case 'c':
        return copy_data(t, m->type);
    case 'Z':
        return ready(t, m);
    case 'E':
        return error(t, m);
    case 'N':
    case 'A':
    case 'S':
        return at_any_time(t, m);
    default:
        return PRT_EV_VIOLATION;
    }
}

uint32_t prt_txn_server(struct prt_txn *t, const struct prt_msg *m)
{
    /* a row changes nothing: here it costs a dozen instructions */
    if (m->type == 'D' && t->count && !t->is_dead) {
        uint16_t entry = *at(t, 0);
        if ((B(QUERY) | B(EXECUTE)) >> (entry & FITS_MASK) & 1) {
            return swallowed(entry);
        }
    }
    return any(t, m);
}

size_t prt_txn_rows(const struct prt_txn *t, const uint8_t *p, size_t n, uint32_t max_packet)
{
    uint16_t entry = t->count && !t->is_dead ? t->q[t->head] : NONE;
    uint8_t shape = (entry & (FITS_MASK | SWALLOW)) == QUERY ? 'T' : 'D';
    size_t at = 0;

    if (shape == 'D' && (entry & (FITS_MASK | SWALLOW)) != EXECUTE) {
        return 0;
    }
    while (n - at >= 5 && (p[at] == 'D' || p[at] == shape)) {
        uint32_t len = prt_get32(p + at + 1);
        if (len < 4 || len > max_packet || len >= n - at) {
            break;
        }
        at += len + 1;
    }
    return at;
}

/* Everything up to CopyDone is data; is what stands behind it, or the request itself, complete? */
static bool copy_in_ends_itself(const struct prt_txn *t)
{
    unsigned n = syncs_behind_head(t);

    if (n + 1 >= t->count || kind_at(t, n + 1) != MARKER) {
        return false;
    }
    for (unsigned i = t->count - 1u; i > n + 1; i--) {
        if (kind_at(t, i) != MARKER) {
            return ends_with_ready(t->q[(t->head + i) % PRT_TXN_QUEUE]);
        }
    }
    return kind_at(t, 0) == QUERY;
}

bool prt_txn_ends_itself(const struct prt_txn *t)
{
    if (t->is_open || t->skips || t->copy == PRT_COPY_BOTH) {
        return false;
    }
    return t->copy != PRT_COPY_IN || copy_in_ends_itself(t);
}
