/* pg_md5_test.c - md5 logins, against what PostgreSQL 15 stores and libpq sends. */
#include "pg/pg.h"
#include "test.h"

/* SET password_encryption = md5; CREATE ROLE emm PASSWORD 'pencil'; SELECT rolpassword */
#define STORED "md56be1ff3e626b23522a874eb6a19e69e2"
/* md5(md5('pencilemm') || '\x01020304') in SQL */
#define ANSWER "md5c58e03ce9797c63ce691cb5bd097621c"

static const uint8_t salt[4] = {1, 2, 3, 4};

static bool check(const char *secret, const char *user, const char *answer)
{
    return prt_md5_check(prt_str_of(secret), prt_str_of(user), salt, prt_str_of(answer));
}

TEST(secret_equals_what_postgres_stores)
{
    char out[36];

    CHECK(prt_md5_secret(PRT_STR("pencil"), PRT_STR("emm"), out));
    CHECK_STR(out, STORED);
}

TEST(plain_and_stored_secrets_accept_the_answer_of_libpq)
{
    CHECK(check("pencil", "emm", ANSWER));
    CHECK(check(STORED, "emm", ANSWER));
    CHECK(check(STORED, "anybody", ANSWER)); /* the name is inside the stored one */
    CHECK(!check("pencil", "emn", ANSWER));
    CHECK(!check("pencil2", "emm", ANSWER));
    CHECK(!check("", "emm", ANSWER));
}

TEST(another_salt_is_another_answer)
{
    const uint8_t other[4] = {1, 2, 3, 5};

    CHECK(!prt_md5_check(PRT_STR("pencil"), PRT_STR("emm"), other, PRT_STR(ANSWER)));
}

TEST(answers_of_another_shape)
{
    char text[] = ANSWER "x";

    CHECK(!check("pencil", "emm", text));
    for (size_t n = 0; n < sizeof ANSWER - 1; n++) {
        CHECK(!prt_md5_check(PRT_STR("pencil"), PRT_STR("emm"), salt, (struct prt_str){ANSWER, n}));
    }
    for (size_t i = 0; i < sizeof ANSWER - 1; i++) {
        char changed[] = ANSWER;
        changed[i] ^= 1;
        CHECK(!check("pencil", "emm", changed));
    }
    CHECK(!check("pencil", "emm", "pencil"));
    CHECK(!check(STORED, "emm", STORED)); /* the stored text itself is no answer */
    CHECK(!prt_md5_check(PRT_STR("pencil"), PRT_STR("emm"), salt, (struct prt_str){NULL, 0}));
}

TEST(a_scram_verifier_never_matches)
{
    static const char verifier[] =
        "SCRAM-SHA-256$4096:Hdl/egfYQd+GeA1R/Jbc3g==$YKDWe8Thsn9podf1l2W65Zu6olUcX/QUqonv3RXRvIs=:"
        "ApBoURQ1PedK2nfFIsit023dg8XnOt20wSasE32bMY4=";
    char as_password[36];

    /* what a client would send who stole the verifier and uses it as a password */
    CHECK(prt_md5_secret(prt_str_of(verifier), PRT_STR("emm"), as_password));
    CHECK(!check(verifier, "emm", ANSWER));
    char inner[33];
    memcpy(inner, as_password + 3, 33);
    char answer[36];
    /* md5(hex || salt): prt_md5_secret hashes its two parts one behind the other */
    CHECK(prt_md5_secret(prt_str_of(inner), (struct prt_str){(const char *)salt, 4}, answer));
    CHECK(check("SCRAM-SHA-256$4096:", "emm", answer) == false);
    CHECK(!check(verifier, "emm", answer));
}
