/* base_base_test.c - strings, the error table, lists. */
#include "base/base.h"
#include "test.h"

TEST(every_result_code_has_its_own_row)
{
    for (int rc = POOLRT_IO; rc <= POOLRT_PENDING; rc++) {
        CHECK_INT(prt_error_row((poolrt_rc)rc)->rc, rc);
        CHECK_INT(strlen(prt_error_row((poolrt_rc)rc)->sqlstate), 5);
    }
    CHECK_INT(prt_error_row((poolrt_rc)-1000)->rc, POOLRT_IO);
}

TEST(a_string_that_does_not_fit_is_refused_whole)
{
    char small[4] = "xxx";

    CHECK(prt_str_copy(small, sizeof small, PRT_STR("abc")));
    CHECK_STR(small, "abc");
    CHECK(!prt_str_copy(small, sizeof small, PRT_STR("abcd")));
    CHECK_STR(small, "");
}

TEST(removing_a_link_twice_is_harmless)
{
    struct prt_link list, a, b;

    prt_list_init(&list);
    prt_list_push(&list, &a);
    prt_list_push(&list, &b);
    prt_list_del(&a);
    prt_list_del(&a);
    CHECK(prt_list_pop(&list) == &b);
    CHECK(prt_list_pop(&list) == NULL);
}

TEST(a_failure_carries_its_code_and_its_sentence)
{
    struct prt_err err;

    CHECK_INT(prt_fail(&err, POOLRT_CONFIG, "line %d", 7), POOLRT_CONFIG);
    CHECK_STR(err.text, "line 7");
    CHECK_INT(prt_fail(NULL, POOLRT_NOMEM, "no place for it"), POOLRT_NOMEM);
}
