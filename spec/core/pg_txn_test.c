/* pg_txn_test.c - the accounting in directed cases: injected, swallowed, refused, COPY, full queue.
 * Whole recorded sessions are in pg_vectors_test.c. */
#include "pg/pg.h"
#include "test.h"

#define TEXT(s) (s), sizeof(s) - 1

static enum prt_txn_rc send_one(struct prt_txn *t, uint8_t type, const char *body, uint32_t n)
{
    struct prt_msg m = {type, n, (const uint8_t *)body, n, n + 5};

    return prt_txn_client(t, &m);
}

/* Letters are messages of the client; D describes a portal, w a statement. All must be forwarded.
 */
static void client(struct prt_txn *t, const char *types)
{
    for (; *types; types++) {
        enum prt_txn_rc rc = *types == 'w'   ? send_one(t, 'D', TEXT("S\0"))
                             : *types == 'D' ? send_one(t, 'D', TEXT("P\0"))
                             : *types == 'S' || *types == 'H' || *types == 'c'
                                 ? send_one(t, (uint8_t)*types, TEXT(""))
                                 : send_one(t, (uint8_t)*types, TEXT("x\0"));
        CHECK_INT(rc, PRT_TXN_FORWARD);
    }
}

static uint32_t answer_one(struct prt_txn *t, uint8_t type, const char *body, uint32_t n)
{
    struct prt_msg m = {type, n, (const uint8_t *)body, n, n + 5};

    return prt_txn_server(t, &m);
}

/* Letters are messages of the server; Z is ready with I, x with T, y with E; f is E with FATAL.
 * Returns the events of the last one; none before it may be a violation. */
static uint32_t server(struct prt_txn *t, const char *types)
{
    uint32_t ev = 0;

    for (; *types; types++) {
        CHECK(!(ev & PRT_EV_VIOLATION));
        switch (*types) {
        case 'Z':
            ev = answer_one(t, 'Z', TEXT("I"));
            break;
        case 'x':
            ev = answer_one(t, 'Z', TEXT("T"));
            break;
        case 'y':
            ev = answer_one(t, 'Z', TEXT("E"));
            break;
        case 'E':
        case 'N':
            ev = answer_one(t, (uint8_t)*types, TEXT("SERROR\0C42601\0Mx\0\0"));
            break;
        case 'f':
            ev = answer_one(t, 'E', TEXT("SFATALE\0VFATAL\0C57P01\0\0"));
            break;
        case 'A':
            ev = answer_one(t, 'A', TEXT("\0\0\0\1c\0p\0"));
            break;
        case 'S':
            ev = answer_one(t, 'S', TEXT("TimeZone\0UTC\0"));
            break;
        default:
            ev = answer_one(t, (uint8_t)*types, TEXT("x\0"));
        }
    }
    return ev;
}

/* Each of these would be a violation now. */
static void refuses(const struct prt_txn *t, const char *types)
{
    for (; *types; types++) {
        struct prt_txn copy = *t;
        char one[2] = {*types, 0};
        if (!(server(&copy, one) & PRT_EV_VIOLATION)) {
            printf("  %c is taken\n", *types);
            CHECK(!"refused");
        }
    }
}

static struct prt_txn *fresh(void)
{
    static struct prt_txn t;

    memset(&t, 0xa5, sizeof t);
    prt_txn_init(&t);
    return &t;
}

TEST(a_fresh_server_may_serve)
{
    struct prt_txn *t = fresh();

    CHECK(prt_txn_may_release(t) && prt_txn_is_settled(t) && prt_txn_ends_itself(t));
    CHECK(!prt_txn_wants_fence(t));
    CHECK_INT(prt_txn_owed(t), 0);
    refuses(t, "123tTnDCIsZEGHWdcVRKvQ?");
}

TEST(simple_query)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK(prt_txn_owed(t) == 1 && !prt_txn_is_settled(t) && prt_txn_ends_itself(t));
    refuses(t, "123tnsVdc");
    CHECK_INT(server(t, "TD"), 0);
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    CHECK_INT(server(t, "I"), 0);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
    client(t, "Q");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR);
    CHECK_INT(prt_txn_owed(t), 1);
    CHECK_INT(server(t, "y"), PRT_EV_READY);
    CHECK(t->status == 'E' && prt_txn_is_settled(t) && !prt_txn_may_release(t));
}

TEST(ready_decides_by_its_one_status_byte)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK(answer_one(t, 'Z', TEXT("")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'Z', TEXT("II")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'Z', TEXT("X")) & PRT_EV_VIOLATION);
    CHECK_INT(server(t, "Cx"), PRT_EV_READY);
    CHECK(t->status == 'T' && !prt_txn_may_release(t));
    refuses(t, "Zxy");
}

TEST(rows_pass_in_one_step_where_they_are_due)
{
    static const uint8_t rows[] = "T\0\0\0\6ab"
                                  "D\0\0\0\5x"
                                  "D\0\0\0\4"
                                  "C\0\0\0\4";
    const size_t all = 7 + 6 + 5;
    struct prt_txn t;

    prt_txn_init(&t);
    CHECK_INT(prt_txn_rows(&t, rows, sizeof rows, 100), 0); /* nothing was asked */
    client(&t, "Q");
    CHECK_INT(prt_txn_rows(&t, rows, sizeof rows, 100), all);
    CHECK_INT(prt_txn_rows(&t, rows, all - 1, 100), 7 + 6); /* the last is not here whole */
    CHECK_INT(prt_txn_rows(&t, rows, all, 5), 0);           /* the first is too long */
    CHECK_INT(prt_txn_rows(&t, rows, 0, 100), 0);
    server(&t, "CZ");
    client(&t, "E");
    CHECK_INT(prt_txn_rows(&t, rows, sizeof rows, 100), 0); /* described before, or never */
    CHECK_INT(prt_txn_rows(&t, rows + 7, all - 7, 100), 6 + 5);
    server(&t, "C");
    CHECK_INT(prt_txn_rows(&t, rows + 7, all - 7, 100), 0);
    client(&t, "S");
    server(&t, "Z");
    CHECK(prt_txn_inject(&t, 'Q', 0)); /* rows of our own are not for the client */
    CHECK_INT(prt_txn_rows(&t, rows, sizeof rows, 100), 0);
}

TEST(extended_batch_in_its_order)
{
    struct prt_txn *t = fresh();

    client(t, "PwBDE");
    CHECK(t->is_open && !prt_txn_ends_itself(t));
    client(t, "S");
    CHECK(!t->is_open && prt_txn_ends_itself(t) && prt_txn_owed(t) == 6);
    refuses(t, "23tTnDCIsZGHWV");
    (void)server(t, "1");
    refuses(t, "123TnDCIsZGHWV"); /* t before T */
    (void)server(t, "t");
    refuses(t, "123tDCIsZGHWV");
    (void)server(t, "T2");
    refuses(t, "123tDCIsZGHWV");
    (void)server(t, "n");
    refuses(t, "123tTnZV");
    CHECK_INT(server(t, "DDs"), 0);
    CHECK_INT(prt_txn_owed(t), 1);
    refuses(t, "123tTnDCIsGHWV");
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
}

TEST(an_open_batch_is_never_released)
{
    struct prt_txn *t = fresh();

    client(t, "PBEH");
    CHECK_INT(server(t, "12C"), PRT_EV_TAG);
    CHECK(prt_txn_owed(t) == 0 && !prt_txn_is_settled(t) && !prt_txn_ends_itself(t));
    client(t, "S");
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(an_error_discards_up_to_the_next_sync_only)
{
    struct prt_txn *t = fresh();

    client(t, "PBESPBES");
    CHECK_INT(server(t, "1E"), PRT_EV_ERROR);
    CHECK(!t->skips && prt_txn_owed(t) == 5);
    CHECK_INT(server(t, "Z12CZ"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
}

TEST(without_a_sync_the_server_skips)
{
    struct prt_txn *t = fresh();

    client(t, "PBQE");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR);
    CHECK(t->skips && prt_txn_owed(t) == 0 && !prt_txn_is_settled(t) && !prt_txn_ends_itself(t));
    client(t, "QPBDECFcfdH"); /* discarded: nothing is owed */
    CHECK(t->count == 0 && t->skips);
    CHECK(prt_txn_inject(t, 'Q', 0) && prt_txn_inject(t, 'P', 0) && t->count == 0);
    client(t, "S");
    CHECK(!t->skips && prt_txn_owed(t) == 1);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(a_query_between_execute_and_sync_has_its_own_ready)
{
    struct prt_txn *t = fresh();

    client(t, "PBEQPBES");
    (void)server(t, "12C");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR); /* of the Query: nothing is skipped */
    CHECK(!t->skips && prt_txn_owed(t) == 5);
    (void)server(t, "Z12C");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR); /* at the Sync: a deferred constraint */
    CHECK_INT(prt_txn_owed(t), 1);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
}

TEST(function_call)
{
    struct prt_txn *t = fresh();

    client(t, "F");
    refuses(t, "123tTnDCIsGHWdc");
    (void)server(t, "V");
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    client(t, "F");
    CHECK_INT(server(t, "EZ"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
}

TEST(describe_of_neither_fails_at_the_server)
{
    struct prt_txn *t = fresh();

    CHECK_INT(send_one(t, 'D', TEXT("Qa\0")), PRT_TXN_FORWARD);
    CHECK_INT(send_one(t, 'D', TEXT("")), PRT_TXN_FORWARD);
    client(t, "S");
    refuses(t, "tTnDCZ");
    (void)server(t, "E");
    CHECK_INT(prt_txn_owed(t), 1);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(what_a_client_may_not_send)
{
    struct prt_txn *t = fresh();

    for (int c = 0; c < 256; c++) {
        bool known = c && strchr("QPBDCESHFdcfX", c);
        CHECK((send_one(t, (uint8_t)c, TEXT("")) == PRT_TXN_VIOLATION) == !known);
    }
    t = fresh();
    CHECK_INT(send_one(t, 'X', TEXT("")), PRT_TXN_TERMINATE);
    CHECK_INT(send_one(t, 'S', TEXT("x")), PRT_TXN_VIOLATION);
    CHECK_INT(send_one(t, 'H', TEXT("x")), PRT_TXN_VIOLATION);
    CHECK_INT(t->count, 0);
}

TEST(messages_at_any_time)
{
    struct prt_txn *t = fresh();

    CHECK_INT(server(t, "N"), PRT_EV_ASYNC);
    CHECK_INT(server(t, "A"), PRT_EV_ASYNC);
    CHECK_INT(server(t, "S"), PRT_EV_PARAM);
    client(t, "Q");
    CHECK_INT(server(t, "N"), PRT_EV_ASYNC);
    CHECK_INT(server(t, "S"), PRT_EV_PARAM);
    CHECK_INT(prt_txn_owed(t), 1);
}

TEST(fatal_ends_it_once)
{
    struct prt_txn *t = fresh();

    client(t, "PBES");
    CHECK_INT(server(t, "1f"), PRT_EV_ERROR | PRT_EV_FATAL);
    CHECK(t->is_dead && !prt_txn_is_settled(t));
    CHECK_INT(server(t, "f"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "Z"), PRT_EV_SWALLOW);
    t = fresh();
    CHECK_INT(server(t, "f"), PRT_EV_ERROR | PRT_EV_FATAL); /* while idle */
    t = fresh();
    CHECK_INT(answer_one(t, 'E', TEXT("SPANIC\0C58000\0\0")), PRT_EV_ERROR | PRT_EV_FATAL);
    t = fresh();
    client(t, "Q"); /* V decides, S is translated */
    CHECK_INT(answer_one(t, 'E', TEXT("SFATAL\0VERROR\0\0")), PRT_EV_ERROR);
}

TEST(bodies_that_do_not_end)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK(answer_one(t, 'C', TEXT("SELECT 1")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'C', TEXT("")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'E', TEXT("")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'E', TEXT("\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'E', TEXT("SERROR\0Mx")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'E', TEXT("SERROR\0Mx\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'N', TEXT("SNOTICE\0\0x\0\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'N', TEXT("\0\0\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'A', TEXT("\0\0\0\1\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'A', TEXT("\0\0\0\1a\0b")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'S', TEXT("")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'S', TEXT("a")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'S', TEXT("a\0")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'S', TEXT("a\0b")) & PRT_EV_VIOLATION);
    CHECK(answer_one(t, 'S', TEXT("a\0b\0c\0")) & PRT_EV_VIOLATION);
    CHECK_INT(answer_one(t, 'S', TEXT("a\0\0")), PRT_EV_PARAM);
    CHECK_INT(prt_txn_owed(t), 1);
}

TEST(the_first_piece_of_a_long_error)
{
    static const char head[] = "SERROR\0VFATAL\0C57P01\0Mlong";
    struct prt_txn *t = fresh();
    struct prt_msg m = {'E', 30000, (const uint8_t *)head, sizeof head - 1, sizeof head + 4};

    CHECK_INT(prt_txn_server(t, &m), PRT_EV_ERROR | PRT_EV_FATAL);
    t = fresh();
    client(t, "Q");
    m.have = 6; /* less than a field: no severity, so an error like any other */
    CHECK_INT(prt_txn_server(t, &m), PRT_EV_ERROR);
    m = (struct prt_msg){'N', 30000, (const uint8_t *)head, 20, 25};
    CHECK_INT(prt_txn_server(t, &m), PRT_EV_ASYNC);
}

/* ---- injected requests ---- */
TEST(answers_of_an_injected_query_stay_here)
{
    struct prt_txn *t = fresh();

    CHECK(prt_txn_inject(t, 'Q', 0));
    client(t, "Q");
    CHECK_INT(server(t, "N"), PRT_EV_ASYNC | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "S"), PRT_EV_PARAM | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "A"), PRT_EV_ASYNC);
    CHECK_INT(server(t, "T"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "D"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "C"), PRT_EV_TAG | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "E"), PRT_EV_ERROR | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "S"), PRT_EV_PARAM);
    CHECK_INT(server(t, "T"), 0);
    CHECK_INT(server(t, "CZ"), PRT_EV_READY);
}

TEST(an_injected_query_that_copies_stays_here_too)
{
    struct prt_txn *t = fresh();

    CHECK(prt_txn_inject(t, 'Q', 0));
    CHECK_INT(server(t, "H"), PRT_EV_COPY | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "d"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "c"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "CZ"), PRT_EV_READY | PRT_EV_SWALLOW);
}

TEST(injected_parse_and_close_swallow_success_but_not_failure)
{
    struct prt_txn *t = fresh();

    CHECK(prt_txn_inject(t, 'C', 'S') && prt_txn_inject(t, 'P', 0));
    CHECK(t->is_open);
    client(t, "BES");
    CHECK_INT(server(t, "3"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "1"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "2"), 0);
    (void)server(t, "CZ");
    CHECK(prt_txn_inject(t, 'P', 0));
    client(t, "BES");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR); /* the answer to the client's Bind */
    CHECK_INT(prt_txn_owed(t), 1);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
}

TEST(an_abandoned_batch_is_rolled_back_by_query_and_sync)
{
    struct prt_txn *t = fresh();

    client(t, "PBEH");
    CHECK(prt_txn_inject(t, 'Q', 0) && prt_txn_inject(t, 'S', 0));
    CHECK(prt_txn_ends_itself(t));
    CHECK_INT(server(t, "12C"), PRT_EV_TAG);
    CHECK_INT(server(t, "N"), PRT_EV_ASYNC | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "C"), PRT_EV_TAG | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(!prt_txn_may_release(t));
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(prt_txn_may_release(t));
}

TEST(refused_requests)
{
    struct prt_txn *t = fresh();

    client(t, "P");
    prt_txn_mark_refused(t);
    client(t, "BES");
    refuses(t, "1Z");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR | PRT_EV_REFUSED);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    client(t, "PB"); /* an error in front of it is the server's own */
    prt_txn_mark_refused(t);
    client(t, "ES");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR);
    (void)server(t, "Z");
    client(t, "Q");
    prt_txn_mark_refused(t);
    refuses(t, "TDCIGHZ");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR | PRT_EV_REFUSED);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
    client(t, "P");
    (void)server(t, "E");
    client(t, "P"); /* skipped, and so is what is sent instead of it */
    prt_txn_mark_refused(t);
    client(t, "S");
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
}

/* ---- COPY ---- */
TEST(copy_in_simple)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK_INT(server(t, "G"), PRT_EV_COPY);
    CHECK(t->copy == PRT_COPY_IN && !prt_txn_ends_itself(t));
    refuses(t, "GHWdcCIZ");
    client(t, "ddSH"); /* a Sync in COPY is swallowed */
    CHECK_INT(prt_txn_owed(t), 2);
    client(t, "c");
    CHECK(prt_txn_owed(t) == 2 && prt_txn_ends_itself(t));
    client(t, "c");
    CHECK(prt_txn_ends_itself(t));
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    CHECK_INT(prt_txn_owed(t), 1);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(copy_in_extended_with_libpqs_two_syncs)
{
    struct prt_txn *t = fresh();

    client(t, "PBES");
    (void)server(t, "12G");
    client(t, "dc");
    CHECK(!prt_txn_ends_itself(t)); /* COPY eats that Sync */
    client(t, "Sc");
    CHECK(prt_txn_ends_itself(t));
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    CHECK_INT(prt_txn_owed(t), 1);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(copy_in_that_ate_the_only_sync_leaves_the_batch_open)
{
    struct prt_txn *t = fresh();

    client(t, "PBES");
    (void)server(t, "12G");
    client(t, "dcc");
    (void)server(t, "C");
    CHECK(t->is_open && !prt_txn_is_settled(t) && !prt_txn_may_release(t));
    client(t, "S");
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(copy_in_may_not_complete_over_other_requests)
{
    struct prt_txn *t = fresh();

    client(t, "PBEPBE");
    (void)server(t, "12G");
    client(t, "c");
    refuses(t, "C");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR); /* "unexpected message" */
    CHECK(t->skips && t->extra == 0);
}

/* The failed COPY swallowed the Sync, and the rest is discarded; or it did not, and the rest runs.
 */
TEST(requests_behind_an_unsure_sync_are_a_violation)
{
    static const char *const behind[] = {"PBESQ",   "PBESP",    "PBEScQ",  "PBESdcP",
                                         "PBEScQS", "PBESPBES", "PBEScFS", "PBEScSQ"};

    for (size_t i = 0; i < sizeof behind / sizeof *behind; i++) {
        struct prt_txn *t = fresh();
        client(t, behind[i]);
        (void)server(t, "12G");
        if (i < 7) {
            refuses(t, "E");
            continue;
        }
        CHECK_INT(server(t, "E"),
                  PRT_EV_ERROR); /* a Sync of its own stands in front of the Query */
        CHECK_INT(server(t, "Z"), PRT_EV_READY);
        CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_EXTRA_READY);
        CHECK_INT(server(t, "CZ"), PRT_EV_READY);
        CHECK(prt_txn_may_release(t));
    }
}

TEST(nothing_but_a_sync_may_follow_an_unsure_error)
{
    struct prt_txn *t = fresh(), before;

    client(t, "PBES");
    (void)server(t, "12GE");
    CHECK(t->skips && t->is_unsure);
    before = *t;
    for (const char *c = "QPBDCEF"; *c; c++) {
        CHECK_INT(send_one(t, (uint8_t)*c, TEXT("S")), PRT_TXN_VIOLATION);
    }
    CHECK(!prt_txn_inject(t, 'Q', 0) && !prt_txn_inject(t, 'P', 0));
    CHECK(memcmp(t, &before, sizeof before) == 0);
    client(t, "dcfHSQ");
    CHECK(!t->skips && !t->is_unsure && prt_txn_owed(t) == 2);
    CHECK_INT(server(t, "ZZ"), PRT_EV_READY | PRT_EV_EXTRA_READY);
    CHECK_INT(server(t, "CZ"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
}

TEST(a_failed_copy_with_a_sync_inside_wants_a_fence)
{
    struct prt_txn *t = fresh();

    client(t, "PBESdcS");
    CHECK_INT(server(t, "12GE"), PRT_EV_ERROR);
    CHECK(t->extra == 1 && prt_txn_owed(t) == 1 && t->markers == 0);
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(prt_txn_is_settled(t) && prt_txn_wants_fence(t) && !prt_txn_may_release(t));
    CHECK(prt_txn_inject(t, 'Q', 0));
    CHECK_INT(server(t, "I"), PRT_EV_SWALLOW); /* none is coming */
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(prt_txn_may_release(t) && !prt_txn_wants_fence(t));
}

TEST(the_extra_ready_is_told_by_the_fence)
{
    struct prt_txn *t = fresh();

    client(t, "PBESdcS");
    (void)server(t, "12GEZ");
    CHECK(prt_txn_inject(t, 'Q', 0));
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_EXTRA_READY); /* in front of its I */
    CHECK(t->extra == 0 && prt_txn_owed(t) == 1);
    CHECK_INT(server(t, "I"), PRT_EV_SWALLOW);
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(prt_txn_may_release(t));
}

TEST(the_extra_ready_before_the_clients_next_query)
{
    struct prt_txn *t = fresh();

    client(t, "PBESdcS");
    (void)server(t, "12GEZ");
    client(t, "Q");
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_EXTRA_READY);
    CHECK_INT(server(t, "TDCZ"), PRT_EV_READY);
    CHECK(prt_txn_may_release(t));
    refuses(t, "Z");
    client(t, "PBESdcS");
    (void)server(t, "12GEZ");
    client(t, "F");
    CHECK_INT(server(t, "VZ"), PRT_EV_READY); /* its own: it was answered */
    CHECK(t->extra == 1 && prt_txn_wants_fence(t));
}

TEST(the_extra_ready_ends_the_skipping)
{
    struct prt_txn *t = fresh();

    client(t, "PBES");
    (void)server(t, "12GE");
    CHECK(t->skips && t->extra == 1);
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_EXTRA_READY);
    CHECK(!t->skips && prt_txn_may_release(t));
    client(t, "dcf"); /* late */
    CHECK(t->count == 0);
}

TEST(a_failed_simple_copy_is_not_ambiguous)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    (void)server(t, "G");
    client(t, "ddf");
    CHECK_INT(server(t, "E"), PRT_EV_ERROR);
    CHECK(t->extra == 0 && t->copy == PRT_COPY_NONE && t->markers == 0);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(copy_out)
{
    struct prt_txn *t = fresh();

    client(t, "PBES");
    CHECK_INT(server(t, "12H"), PRT_EV_COPY);
    CHECK_INT(t->copy, PRT_COPY_OUT);
    refuses(t, "GHWZ");
    CHECK_INT(server(t, "dd"), 0);
    CHECK_INT(server(t, "c"), 0);
    refuses(t, "dc");
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(copy_both_is_never_settled)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK_INT(server(t, "W"), PRT_EV_COPY);
    client(t, "dc");
    CHECK(t->markers == 0 && !prt_txn_ends_itself(t));
    CHECK_INT(server(t, "ddc"), 0);
    CHECK(!prt_txn_is_settled(t) && t->copy == PRT_COPY_BOTH);
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(late_copy_messages_owe_nothing)
{
    struct prt_txn *t = fresh();

    client(t, "dcf");
    CHECK_INT(t->count, 0);
    client(t, "Qcf"); /* a COPY may still begin */
    CHECK(t->markers == 2 && prt_txn_owed(t) == 1);
    (void)server(t, "TDC");
    CHECK_INT(server(t, "Z"), PRT_EV_READY);
    CHECK(t->count == 0 && t->markers == 0 && prt_txn_may_release(t));
    client(t, "PcBES"); /* in the middle of a batch */
    (void)server(t, "12CZ");
    CHECK(prt_txn_may_release(t));
}

TEST(markers_of_the_past_do_not_end_a_later_copy)
{
    struct prt_txn *t = fresh();

    client(t, "QcQ");
    (void)server(t, "CZG");
    CHECK(t->copy == PRT_COPY_IN && t->markers == 0);
    refuses(t, "C");
    client(t, "c");
    (void)server(t, "CZ");
    CHECK(prt_txn_may_release(t));
}

/* ---- a full queue ---- */
static unsigned fill(struct prt_txn *t, uint8_t type)
{
    unsigned n = 0;

    while (n < 2 * PRT_TXN_QUEUE && send_one(t, type, TEXT("")) == PRT_TXN_FORWARD) {
        n++;
    }
    return n;
}

TEST(a_full_queue_stops_the_client_and_can_still_be_ended)
{
    struct prt_txn *t = fresh(), before;
    unsigned n = fill(t, 'B');

    CHECK(n > PRT_TXN_QUEUE - 16 && n < PRT_TXN_QUEUE);
    CHECK_INT(prt_txn_owed(t), n);
    before = *t;
    for (const char *c = "QPBDCEFS"; *c; c++) {
        CHECK_INT(send_one(t, (uint8_t)*c, TEXT("")), PRT_TXN_FULL);
    }
    CHECK(memcmp(t, &before, sizeof before) == 0); /* not counted */
    client(t, "Hd");
    CHECK(!prt_txn_ends_itself(t)); /* so a Flush is due */
    CHECK(prt_txn_inject(t, 'Q', 0) && prt_txn_inject(t, 'S', 0));
    for (; n; n--) {
        CHECK_INT(server(t, "2"), 0);
    }
    CHECK_INT(server(t, "CZ"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK_INT(server(t, "Z"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(prt_txn_may_release(t));
}

TEST(a_queue_of_swallowed_syncs_still_takes_copy_done)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    (void)server(t, "G");
    CHECK(fill(t, 'S') > 900);
    client(t, "c");
    CHECK_INT(server(t, "C"), PRT_EV_TAG);
    CHECK_INT(t->count, 1);
    (void)server(t, "Z");
    CHECK(prt_txn_may_release(t));
}

TEST(a_flood_of_markers_leaves_room_for_the_pooler)
{
    struct prt_txn *t = fresh();

    client(t, "Q");
    CHECK_INT(fill(t, 'c'), PRT_TXN_QUEUE - 5);
    CHECK(prt_txn_inject(t, 'Q', 0) && prt_txn_inject(t, 'S', 0));
    CHECK(prt_txn_inject(t, 'Q', 0) && prt_txn_inject(t, 'S', 0));
    CHECK(!prt_txn_inject(t, 'Q', 0) && !prt_txn_inject(t, 'S', 0));
    CHECK_INT(server(t, "N"), PRT_EV_ASYNC);
    CHECK_INT(server(t, "CZ"), PRT_EV_READY);
    CHECK_INT(t->markers, 0);
    CHECK_INT(server(t, "CZZCZZ"), PRT_EV_READY | PRT_EV_SWALLOW);
    CHECK(prt_txn_may_release(t));
}

TEST(the_ring_goes_round)
{
    struct prt_txn *t = fresh();

    for (int i = 0; i < 5000; i++) {
        client(t, "PBESdcS");
        CHECK_INT(server(t, i % 2 ? "12GCZ" : "12GEZ"), PRT_EV_READY);
        CHECK_INT(t->extra, i % 2 == 0);
        if (t->extra) {
            CHECK(prt_txn_inject(t, 'Q', 0));
            CHECK_INT(server(t, "IZ"), PRT_EV_READY | PRT_EV_SWALLOW);
        }
        CHECK(prt_txn_may_release(t));
    }
}
