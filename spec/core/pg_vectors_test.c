/* pg_vectors_test.c - recorded and hostile streams of spec/vectors against frame, txn and startup.
 * Run from the top of the checkout. POOLRT_SEED=n repeats a run of random cuts. */
#include "pg/pg.h"
#include "test.h"

#include <ctype.h>
#include <time.h>

#define MAX_PACKET 0x3fffffffu

/* ---- a JSON reader: just what the vectors use, on one line; every node is freed with the line
 * ---- */
struct json {
    enum { J_NULL, J_BOOL, J_NUMBER, J_STRING, J_ARRAY, J_OBJECT } type;
    long number; /* BOOL, NUMBER */
    char *text;  /* STRING; of a member: its value's own text */
    char *key;   /* in an object: the name of this member */
    struct json *child, *next;
};
static struct json *json_all[20000];
static int json_count;

static struct json *json_new(void)
{
    struct json *j = calloc(1, sizeof *j);
    if (!j || json_count == (int)(sizeof json_all / sizeof *json_all)) {
        abort();
    }
    return json_all[json_count++] = j;
}

static void json_free_all(void)
{
    while (json_count) {
        struct json *j = json_all[--json_count];
        free(j->text);
        free(j->key);
        free(j);
    }
}

static const char *skip_blanks(const char *p)
{
    while (isspace((unsigned char)*p)) {
        p++;
    }
    return p;
}

/* \u escapes become '?': no vector's meaning hangs on one */
static const char *json_string(const char *p, char **out)
{
    char *w = malloc(strlen(p) + 1);

    *out = w;
    for (p++; *p && *p != '"'; p++) {
        if (*p == '\\' && *++p == 'u') {
            *w++ = '?';
            p += 4;
        } else {
            *w++ = *p;
        }
    }
    *w = 0;
    return p + 1;
}

static const char *json_value(const char *p, struct json *j);

static const char *json_children(const char *p, struct json *j, char close)
{
    struct json **end = &j->child;

    for (p = skip_blanks(p + 1); *p && *p != close; p = skip_blanks(p)) {
        char *key = NULL;
        if (close == '}') {
            p = skip_blanks(json_string(p, &key)) + 1; /* the colon */
        }
        *end = json_new();
        (*end)->key = key;
        p = skip_blanks(json_value(skip_blanks(p), *end));
        end = &(*end)->next;
        p += *p == ',';
    }
    return p + 1;
}

static const char *json_value(const char *p, struct json *j)
{
    char *end;

    switch (*p) {
    case '{':
        j->type = J_OBJECT;
        return json_children(p, j, '}');
    case '[':
        j->type = J_ARRAY;
        return json_children(p, j, ']');
    case '"':
        j->type = J_STRING;
        return json_string(p, &j->text);
    case 'n':
        return p + 4;
    case 't':
    case 'f':
        j->type = J_BOOL;
        j->number = *p == 't';
        return p + (*p == 't' ? 4 : 5);
    default:
        j->type = J_NUMBER;
        j->number = strtol(p, &end, 10);
        return end > p ? end : p + strlen(p);
    }
}

static struct json *json_get(struct json *j, const char *key)
{
    for (struct json *c = j->child; c; c = c->next) {
        if (c->key && strcmp(c->key, key) == 0) {
            return c;
        }
    }
    return NULL;
}

static const char *json_text(struct json *j, const char *key)
{
    struct json *c = json_get(j, key);
    return c && c->text ? c->text : "";
}

/* Calls `each` for every line of the file; returns how many there were. */
static int each_line(const char *path, void (*each)(struct json *line))
{
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t cap = 0;
    int n = 0;

    if (!f) {
        printf("  %s: not found; run from the top of the checkout\n", path);
        return 0;
    }
    while (getline(&text, &cap, f) > 0) {
        struct json *line = json_new();
        (void)json_value(text, line);
        each(line);
        json_free_all();
        n++;
    }
    free(text);
    (void)fclose(f);
    return n;
}

static int nibble(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static uint8_t *from_hex(const char *hex, size_t *n)
{
    uint8_t *p = malloc(strlen(hex) / 2 + 1);

    for (*n = 0; hex[*n * 2]; ++*n) {
        p[*n] = (uint8_t)(nibble(hex[*n * 2]) << 4 | nibble(hex[*n * 2 + 1]));
    }
    return p;
}

/* ---- random cuts ---- */
static uint64_t seed;

static unsigned random_below(unsigned n)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (unsigned)(seed % n);
}

/* ---- captured.jsonl: one recorded connection ---- */
enum cut { WHOLE, BYTES, RANDOM };
static const char *const cut_name[] = {"whole", "byte by byte", "random cuts"};

struct replay {
    struct prt_txn txn;
    struct prt_frame frame[2];
    struct prt_buf in[2];
    bool in_startup, is_asked, is_ready;
    struct json *expect; /* the next expected line */
    char last[80];       /* the last line that was made */
    const char *id, *how;
    bool is_bad;
};

static void say(struct replay *r, const char *line)
{
    if (!r->is_bad && (!r->expect || strcmp(r->expect->text, line))) {
        printf("  %s, %s: got \"%s\", not \"%s\"\n", r->id, r->how, line,
               r->expect ? r->expect->text : "(the end)");
        r->is_bad = true;
    }
    (void)snprintf(r->last, sizeof r->last, "%s", line);
    r->expect = r->expect ? r->expect->next : NULL;
}

static const char *client_word(const struct prt_txn *t, uint8_t type)
{
    bool sends_copy = t->copy == PRT_COPY_IN || t->copy == PRT_COPY_BOTH;

    if (type == 'X') {
        return " terminate";
    }
    if (type == 'd') {
        return !sends_copy && t->count == 0 ? " late" : "";
    }
    if (type == 'c' || type == 'f') {
        return t->copy != PRT_COPY_BOTH && (t->skips || t->count == 0) ? " late" : "";
    }
    return t->skips && type != 'S' && type != 'H' ? " skipped" : "";
}

static void client_message(struct replay *r, const struct prt_msg *m)
{
    const char *word = client_word(&r->txn, m->type);
    enum prt_txn_rc rc = prt_txn_client(&r->txn, m);
    char line[80];

    CHECK(rc == (m->type == 'X' ? PRT_TXN_TERMINATE : PRT_TXN_FORWARD));
    (void)snprintf(line, sizeof line, "F %c %u%s", m->type, prt_txn_owed(&r->txn), word);
    say(r, line);
}

static const char *server_word(const struct prt_txn *t, uint32_t ev)
{
    static const char *const copy[] = {"", " copy in", " copy out", " copy both"};

    if (ev & PRT_EV_COPY) {
        return copy[t->copy];
    }
    if (ev & PRT_EV_FATAL) {
        return " fatal";
    }
    if (ev & PRT_EV_ERROR) {
        return t->skips ? " error skip" : " error";
    }
    if (ev & PRT_EV_READY) {
        return prt_txn_may_release(t) ? " release" : prt_txn_wants_fence(t) ? " fence" : "";
    }
    return ev & PRT_EV_ASYNC ? " async" : ev & PRT_EV_PARAM ? " param" : "";
}

static void server_message(struct replay *r, const struct prt_msg *m)
{
    uint32_t ev = prt_txn_server(&r->txn, m);
    char line[80], status[3] = "";

    CHECK(!(ev & (PRT_EV_VIOLATION | PRT_EV_SWALLOW)));
    CHECK(!(ev & PRT_EV_TAG) == (m->type != 'C'));
    if (m->type == 'D' && strncmp(r->last, "B D ", 4) == 0) {
        return;
    }
    if (ev & PRT_EV_READY) {
        status[0] = ' ', status[1] = (char)r->txn.status;
    }
    (void)snprintf(line, sizeof line, "B %c%s %u%s%s", m->type, status, prt_txn_owed(&r->txn),
                   ev & PRT_EV_EXTRA_READY ? " extra Z" : "", server_word(&r->txn, ev));
    say(r, line);
}

static void login_message(struct replay *r, enum prt_side from, uint8_t type)
{
    const char *line = from == PRT_FRONTEND ? "F login" : "B login";

    if (type == 'Z') {
        r->is_ready = true;
        say(r, "B Z I 0 release");
    } else if (strcmp(r->last, line)) {
        say(r, line);
    }
}

static size_t startup_step(struct replay *r, const uint8_t *p, size_t n)
{
    struct prt_startup s;
    struct prt_err err;
    char line[80];
    enum prt_startup_rc rc = prt_startup_parse(p, n, &s, &err);

    if (rc == PRT_STARTUP_MORE) {
        return 0;
    }
    CHECK_INT(rc, PRT_STARTUP_OK);
    (void)snprintf(line, sizeof line, "F startup %u", prt_get32(p + 4));
    say(r, line);
    r->is_asked = s.kind == PRT_START_SSL || s.kind == PRT_START_GSS;
    r->in_startup = r->is_asked;
    return rc == PRT_STARTUP_OK ? s.size : n;
}

static size_t message_step(struct replay *r, enum prt_side from, const uint8_t *p, size_t n)
{
    struct prt_msg m;
    enum prt_frame_rc rc = prt_frame_next(&r->frame[from], from, p, n, MAX_PACKET, &m);

    if (rc == PRT_FRAME_MORE) {
        return 0;
    }
    CHECK(rc != PRT_FRAME_BAD);
    if (rc == PRT_FRAME_BAD) {
        r->is_bad = true;
        return n;
    }
    CHECK(m.size <= n && m.have <= m.len);
    if (rc == PRT_FRAME_REST) {
        return m.size;
    }
    if (!r->is_ready) {
        login_message(r, from, m.type);
    } else if (from == PRT_FRONTEND) {
        client_message(r, &m);
    } else {
        server_message(r, &m);
    }
    return m.size;
}

static void feed(struct replay *r, enum prt_side from, const uint8_t *p, size_t n)
{
    struct prt_buf *in = &r->in[from];
    size_t used;

    CHECK(prt_buf_add(in, p, n));
    while (prt_buf_len(in) && !r->is_bad) {
        p = prt_buf_data(in);
        if (from == PRT_BACKEND && r->is_asked) {
            char line[16];
            (void)snprintf(line, sizeof line, "B ssl %c", p[0]);
            say(r, line);
            r->is_asked = false;
            used = 1;
        } else if (from == PRT_FRONTEND && r->in_startup) {
            used = startup_step(r, p, prt_buf_len(in));
        } else {
            used = message_step(r, from, p, prt_buf_len(in));
        }
        if (used == 0) {
            return;
        }
        prt_buf_eat(in, used);
    }
}

static void feed_cut(struct replay *r, enum prt_side from, const char *hex, enum cut how)
{
    size_t n, at = 0;
    uint8_t *p = from_hex(hex, &n);

    while (at < n) {
        size_t k = how == WHOLE ? n : how == BYTES ? 1 : 1 + random_below(40);
        k = k > n - at ? n - at : k;
        feed(r, from, p + at, k);
        at += k;
    }
    free(p);
}

static void check_final(const struct replay *r, struct json *final)
{
    static const char *const copy[] = {"", "in", "out", "both"};
    const struct prt_txn *t = &r->txn;
    char status[2] = {(char)t->status, 0};

    CHECK_STR(status, json_text(final, "status"));
    CHECK_STR(copy[t->copy], json_text(final, "copy"));
    CHECK_INT(prt_txn_owed(t), json_get(final, "owed")->number);
    CHECK_INT(t->is_open, json_get(final, "open")->number);
    CHECK_INT(t->skips, json_get(final, "skip")->number);
    CHECK_INT(t->extra, json_get(final, "extra")->number);
    CHECK_INT(t->is_dead, json_get(final, "dead")->number);
    CHECK_INT(prt_txn_may_release(t), json_get(final, "releasable")->number);
}

static void replay(struct json *line, enum cut how)
{
    struct replay r = {.in_startup = true,
                       .id = json_text(line, "id"),
                       .how = cut_name[how],
                       .expect = json_get(line, "expect")->child};
    int bad = prt_test_bad;

    prt_txn_init(&r.txn);
    for (struct json *s = json_get(line, "steps")->child; s; s = s->next) {
        enum prt_side from = s->child->text[0] == 'F' ? PRT_FRONTEND : PRT_BACKEND;
        if (s->child->next->text) {
            feed_cut(&r, from, s->child->next->text, how);
        } else {
            say(&r, from == PRT_FRONTEND ? "F end" : "B end");
        }
    }
    CHECK(!r.is_bad);
    CHECK(!r.expect);
    check_final(&r, json_get(line, "final"));
    if (prt_test_bad != bad) {
        printf("  ^ %s, %s\n", r.id, r.how);
    }
    prt_buf_free(&r.in[0]);
    prt_buf_free(&r.in[1]);
}

static void replay_whole(struct json *line)
{
    replay(line, WHOLE);
}
static void replay_bytes(struct json *line)
{
    replay(line, BYTES);
}
static void replay_random(struct json *line)
{
    replay(line, RANDOM);
}

TEST(captured_whole)
{
    CHECK_INT(each_line("spec/vectors/captured.jsonl", replay_whole), 106);
}
TEST(captured_byte_by_byte)
{
    CHECK_INT(each_line("spec/vectors/captured.jsonl", replay_bytes), 106);
}
TEST(captured_in_random_cuts)
{
    const char *given = getenv("POOLRT_SEED");

    seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    seed += seed == 0;
    printf("  POOLRT_SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(each_line("spec/vectors/captured.jsonl", replay_random), 106);
    }
}

/* ---- hostile.jsonl ----
 * Here: what pg alone decides. Left to end-to-end specs: `password` and `sasl-first` but for their
 * lengths, and `ssl-answer`, `login`, `login-sasl`, which libpq reads. */
enum verdict { FINE, REFUSED_BY_FRAME, REFUSED_BY_TXN, FATAL, TERMINATED, CUT };

struct hostile {
    struct prt_txn txn;
    struct prt_frame frame;
    uint32_t events; /* all that came */
    unsigned readies;
    bool all_swallowed;
};

static uint8_t *hostile_bytes(struct json *line, size_t *n)
{
    struct json *runs = json_get(line, "runs");
    uint8_t *p;

    if (!runs) {
        return from_hex(json_text(line, "bytes"), n);
    }
    *n = 0;
    for (struct json *r = runs->child; r; r = r->next) {
        *n += (size_t)r->child->next->number;
    }
    p = malloc(*n + 1);
    *n = 0;
    for (struct json *r = runs->child; r; r = r->next) {
        size_t k = (size_t)r->child->next->number;
        memset(p + *n, (int)r->child->number, k);
        *n += k;
    }
    return p;
}

static void server_says(struct prt_txn *t, uint8_t type, const char *body, uint32_t n)
{
    struct prt_msg m = {type, n, (const uint8_t *)body, n, n + 5};

    CHECK(!(prt_txn_server(t, &m) & PRT_EV_VIOLATION));
}

static void client_says(struct prt_txn *t, uint8_t type, const char *body, uint32_t n)
{
    struct prt_msg m = {type, n, (const uint8_t *)body, n, n + 5};

    CHECK_INT(prt_txn_client(t, &m), PRT_TXN_FORWARD);
}

/* One message of the client; a full queue of Syncs is answered, as the server would. */
static enum verdict hostile_client(struct hostile *h, const struct prt_msg *m)
{
    enum prt_txn_rc rc = prt_txn_client(&h->txn, m);

    if (rc == PRT_TXN_FULL) {
        CHECK(prt_txn_ends_itself(&h->txn));
        while (prt_txn_owed(&h->txn)) {
            server_says(&h->txn, 'Z', "I", 1);
            h->readies++;
        }
        rc = prt_txn_client(&h->txn, m);
    }
    return rc == PRT_TXN_TERMINATE ? TERMINATED : rc == PRT_TXN_FORWARD ? FINE : REFUSED_BY_TXN;
}

static enum verdict hostile_server(struct hostile *h, const struct prt_msg *m)
{
    uint32_t ev = prt_txn_server(&h->txn, m);

    h->events |= ev;
    h->all_swallowed &= !!(ev & PRT_EV_SWALLOW);
    return ev & PRT_EV_VIOLATION ? REFUSED_BY_TXN : ev & PRT_EV_FATAL ? FATAL : FINE;
}

static enum verdict hostile_feed(struct hostile *h, enum prt_side from, const uint8_t *p, size_t n,
                                 size_t piece)
{
    size_t at = 0, end = 0;

    h->all_swallowed = true;
    while (at < n) {
        struct prt_msg m;
        enum prt_frame_rc rc;
        enum verdict v = FINE;
        end = end > at ? end : at;
        end = piece > n - end ? n : end + piece;
        while ((rc = prt_frame_next(&h->frame, from, p + at, end - at, MAX_PACKET, &m)) <=
               PRT_FRAME_REST) {
            at += m.size;
            if (rc == PRT_FRAME_MSG) {
                v = from == PRT_FRONTEND ? hostile_client(h, &m) : hostile_server(h, &m);
            }
            if (v != FINE) {
                return v;
            }
        }
        if (rc == PRT_FRAME_BAD) {
            return REFUSED_BY_FRAME;
        }
        if (end == n) {
            break;
        }
    }
    return at < n || !prt_frame_is_clean(&h->frame) ? CUT : FINE;
}

static bool begins(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

static void stage(struct hostile *h, const char *when)
{
    prt_txn_init(&h->txn);
    if (begins(when, "injected")) {
        CHECK(prt_txn_inject(&h->txn, 'Q', 0));
    } else if (strcmp(when, "answering") == 0) {
        client_says(&h->txn, 'Q', "x", 2);
    } else if (strcmp(when, "batch") == 0) {
        client_says(&h->txn, 'P', "\0x\0\0", 5);
        client_says(&h->txn, 'B', "\0\0\0\0\0\0\0", 8);
        client_says(&h->txn, 'D', "P", 2);
        client_says(&h->txn, 'E', "\0\0\0\0", 5);
        client_says(&h->txn, 'S', "", 0);
    } else if (strcmp(when, "copy-in") == 0) {
        client_says(&h->txn, 'Q', "copy t from stdin", 18);
        server_says(&h->txn, 'G', "\0\0", 3);
    }
}

static void check_server_line(struct json *line, const struct hostile *h, enum verdict v)
{
    const char *react = json_text(line, "react"), *when = json_text(line, "when");
    bool must_close = v == REFUSED_BY_FRAME || v == REFUSED_BY_TXN;

    if (strcmp(react, "drop") == 0 && begins(when, "injected")) {
        /* the pooler's own rule: its ROLLBACK or reset did not do what it must */
        CHECK(v == FINE && h->all_swallowed);
        CHECK(h->events & PRT_EV_ERROR || !prt_txn_may_release(&h->txn));
    } else if (strcmp(react, "drop") == 0) {
        /* at the end of the bytes, EOF: something is owed, or a message is cut */
        CHECK(must_close || v == CUT || v == FATAL || prt_txn_owed(&h->txn));
    } else if (strcmp(react, "forward and drop") == 0 || begins(react, "retry")) {
        CHECK_INT(v, FATAL);
    } else if (strcmp(react, "reject") == 0) {
        CHECK(v == FINE && h->all_swallowed && (h->events & PRT_EV_ERROR));
    } else if (strcmp(react, "wait") == 0) {
        CHECK_INT(v, CUT);
    } else {
        CHECK(strcmp(react, "forward") == 0 || strcmp(react, "accept") == 0);
        CHECK_INT(v, FINE);
        CHECK(prt_txn_may_release(&h->txn));
    }
}

/* Which of the two reactions a drop needs: lines of the framing and of the order close by
 * themselves, not only because the bytes end. */
static bool closes_by_itself(const char *id)
{
    static const char *const by_end[] = {"eof", "eof-in-row", "idle-fatal", "rollback-odd",
                                         "reset-error"};
    for (size_t i = 0; i < sizeof by_end / sizeof *by_end; i++) {
        if (strcmp(id, by_end[i]) == 0) {
            return false;
        }
    }
    return true;
}

static void check_client_line(struct json *line, const struct hostile *h, enum verdict v)
{
    const char *react = json_text(line, "react"), *id = json_text(line, "id");
    bool is_refused = v == REFUSED_BY_FRAME || v == REFUSED_BY_TXN;

    if (begins(react, "fatal")) {
        CHECK(is_refused);
    } else if (strcmp(react, "close") == 0) {
        CHECK(v == CUT || v == TERMINATED || is_refused);
    } else {
        CHECK(begins(react, "error") || strcmp(react, "accept") == 0 ||
              strcmp(react, "ignore") == 0);
        CHECK_INT(v, FINE);
    }
    if (strcmp(id, "sync-flood") == 0) {
        CHECK_INT(h->readies + prt_txn_owed(&h->txn), 2000);
    }
}

static void hostile_session_line(struct json *line, const uint8_t *p, size_t n, size_t piece)
{
    bool is_client = strcmp(json_text(line, "side"), "client") == 0;
    struct hostile h = {0};
    enum verdict v;

    stage(&h, json_text(line, "when"));
    v = hostile_feed(&h, is_client ? PRT_FRONTEND : PRT_BACKEND, p, n, piece);
    if (is_client) {
        check_client_line(line, &h, v);
        return;
    }
    check_server_line(line, &h, v);
    if (strcmp(json_text(line, "react"), "drop") == 0 && closes_by_itself(json_text(line, "id"))) {
        CHECK(v == REFUSED_BY_FRAME || v == REFUSED_BY_TXN);
    }
}

static bool options_are_refused(const struct prt_startup *s)
{
    char buf[PRT_STARTUP_MAX];
    struct prt_str name, value;
    size_t at = 0;
    int rc;

    while ((rc = prt_options_next(s->options, &at, buf, &name, &value)) > 0) {
    }
    return rc < 0;
}

static void check_accepted(const char *id, const char *react, const struct prt_startup *s, size_t n)
{
    if (begins(react, "fatal")) { /* what comes behind it or inside is refused, by the caller */
        CHECK(s->size < n || options_are_refused(s));
    } else if (strcmp(react, "close") == 0) {
        CHECK_INT(s->kind, PRT_START_CANCEL);
    } else if (strcmp(react, "negotiate") == 0) {
        CHECK(s->wants_negotiation);
    } else if (strcmp(react, "last wins") == 0) {
        CHECK(prt_str_eqz(s->user, "postgres"));
    } else {
        CHECK(begins(react, "accept") || strcmp(react, "setting") == 0 ||
              strcmp(react, "answer N N") == 0);
        CHECK(!s->wants_negotiation);
    }
    CHECK(strcmp(id, "cancel-long") || s->cancel_key.n == 256);
}

static void hostile_start_line(struct json *line, const uint8_t *p, size_t n, size_t piece)
{
    const char *id = json_text(line, "id"), *react = json_text(line, "react");
    enum prt_startup_rc rc = PRT_STARTUP_MORE;
    struct prt_startup s;
    struct prt_err err = {0};

    for (size_t have = 0; rc == PRT_STARTUP_MORE && have < n;) {
        have = piece > n - have ? n : have + piece;
        rc = prt_startup_parse(p, have, &s, &err);
    }
    if (rc == PRT_STARTUP_OK) {
        check_accepted(id, react, &s, n);
    } else if (rc == PRT_STARTUP_ERROR) {
        CHECK(strstr(react, "fatal"));
        CHECK(strcmp(react, "accept or fatal") == 0 || strstr(react, err.sqlstate));
        CHECK(err.text[0]);
    } else if (rc == PRT_STARTUP_SILENCE) {
        CHECK(strstr(react, "close"));
    } else {
        CHECK(!"the whole packet is here, and more is asked for");
    }
}

static int hostile_checked;

static void hostile_line(struct json *line)
{
    const char *when = json_text(line, "when"), *id = json_text(line, "id");
    size_t n;
    uint8_t *p = hostile_bytes(line, &n);
    int bad = prt_test_bad;
    static const size_t pieces[] = {1 << 30, 1, 7};

    for (int i = 0; i < 3; i++) {
        if (begins(when, "start")) {
            hostile_start_line(line, p, n, pieces[i]);
        } else if (begins(when, "injected") || strcmp(when, "answering") == 0 ||
                   strcmp(when, "batch") == 0 || strcmp(when, "idle") == 0 ||
                   strcmp(when, "copy-in") == 0 || strcmp(id, "password-long") == 0 ||
                   strcmp(id, "password-huge") == 0) {
            hostile_session_line(line, p, n, pieces[i]);
        } else {
            hostile_checked--;
        }
        hostile_checked++;
    }
    if (prt_test_bad != bad) {
        printf("  ^ %s (%s): %s\n", id, when, json_text(line, "react"));
    }
    free(p);
}

TEST(hostile)
{
    hostile_checked = 0;
    CHECK_INT(each_line("spec/vectors/hostile.jsonl", hostile_line), 179);
    CHECK_INT(hostile_checked / 3, 179 - 43);
}

/* ---- pooled.jsonl: what a pooler sends to its servers, with injected requests, must add up ----
 */
static void pooled_stream(struct hostile *h, struct json *part)
{
    enum prt_side from = part->child->text[0] == 'F' ? PRT_FRONTEND : PRT_BACKEND;
    size_t n;
    uint8_t *p = from_hex(part->child->next->text, &n);
    enum verdict v = hostile_feed(h, from, p, n, 1 << 30);

    CHECK(v == FINE || v == TERMINATED);
    free(p);
}

static void pooled_line(struct json *line)
{
    struct hostile servers[2];
    long last = -1;
    int bad = prt_test_bad;

    memset(servers, 0, sizeof servers);
    prt_txn_init(&servers[0].txn);
    prt_txn_init(&servers[1].txn);
    for (struct json *s = json_get(line, "steps")->child; s; s = s->next) {
        long now = s->child->number;
        if (last >= 0 && last != now) {
            CHECK(prt_txn_may_release(&servers[last].txn));
        }
        for (struct json *part = s->child->next->next->child; part; part = part->next) {
            pooled_stream(&servers[now], part);
        }
        last = now;
    }
    if (prt_test_bad != bad) {
        printf("  ^ %s\n", json_text(line, "id"));
    }
}

TEST(pooled_servers_are_settled_at_each_change)
{
    CHECK_INT(each_line("spec/vectors/pooled.jsonl", pooled_line), 27);
}
