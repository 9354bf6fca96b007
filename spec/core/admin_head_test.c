/* admin_head_test.c - which heads pass, and that all others are refused for the right reason. */
#include "admin/admin_int.h"
#include "test.h"

/* Reads `in` in pieces of `step` bytes, each time with all that came before, as the gate does.
 * Returns the status of the refusal, 0 when the head is sane, -1 when it is not whole. */
static int read_head(struct prt_str in, size_t step, struct prt_http_head *h)
{
    struct prt_head_scan scan = {.at = 0};
    struct prt_refusal why = {.status = 0};

    for (size_t n = step < in.n ? step : in.n;; n = in.n - n < step ? in.n : n + step) {
        switch (prt_head_scan((struct prt_str){in.p, n}, &scan, &why)) {
        case PRT_HEAD_BAD:
            return why.status;
        case PRT_HEAD_WHOLE:
            return prt_head_parse((struct prt_str){in.p, scan.at}, h, &why) ? 0 : why.status;
        case PRT_HEAD_MORE:
            break;
        }
        if (n == in.n) {
            return -1;
        }
    }
}

static int status_of(struct prt_str in)
{
    struct prt_http_head h;
    int whole = read_head(in, in.n, &h);

    for (size_t step = 1; step < 8; step++) {
        CHECK_INT(read_head(in, step, &h), whole);
    }
    return whole;
}
#define STATUS(lit) status_of(PRT_STR(lit))

TEST(a_plain_request_is_taken_apart)
{
    struct prt_str in = PRT_STR("GET /a%20b?x=1 HTTP/1.1\r\nHost: localhost:80\r\n"
                                "aUTHORization:\t Bearer x \r\nContent-Length: 12\r\n\r\nrest");
    struct prt_http_head h;

    CHECK_INT(read_head(in, in.n, &h), 0);
    CHECK(prt_str_eqz(h.method, "GET"));
    CHECK(prt_str_eqz(h.target, "/a%20b?x=1"));
    CHECK(prt_str_eqz(h.host, "localhost:80"));
    CHECK(prt_str_eqz(h.authorization, "Bearer x"));
    CHECK_INT(h.length, 12);
}

TEST(http_1_0_and_other_methods_pass)
{
    CHECK_INT(STATUS("DELETE / HTTP/1.0\r\nHost: a\r\n\r\n"), 0);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost:\r\nX-Empty:\r\n\r\n"), 0);
}

TEST(an_unfinished_head_waits)
{
    CHECK_INT(STATUS("GET"), -1);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\n"), -1);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\n\r"), -1);
}

TEST(what_is_not_http_is_refused_at_once)
{
    CHECK_INT(STATUS("\x16\x03\x01"), 400);
    CHECK_INT(STATUS("\r\nGET / HTTP/1.1\r\n"), 400);
    CHECK_INT(STATUS("G\r\n"), -1); /* a line, but the head is not whole */
    CHECK_INT(STATUS("G\r\n\r\n"), 400);
}

TEST(bare_line_feeds_and_controls_are_refused)
{
    CHECK_INT(STATUS("GET / HTTP/1.1\nHost: a\n\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
}

TEST(a_folded_field_is_refused)
{
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\t2\r\n\r\n"), 400);
}

TEST(malformed_fields_are_refused)
{
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost : a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\n: v\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nX\xffY: v\r\n\r\n"), 400);
}

TEST(the_request_line_is_exact)
{
    CHECK_INT(STATUS("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /  HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /\tHTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / http/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
    CHECK_INT(STATUS("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), 505);
}

TEST(only_a_plain_path_is_a_target)
{
    CHECK_INT(STATUS("GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
}

TEST(doubtful_lengths_are_refused)
{
#define LENGTH(v) STATUS("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:" v "\r\n\r\n")
    CHECK_INT(LENGTH("5"), 0);
    CHECK_INT(LENGTH(" 1048576"), 0);
    CHECK_INT(LENGTH("1048577"), 413);
    CHECK_INT(LENGTH(""), 400);
    CHECK_INT(LENGTH("-1"), 400);
    CHECK_INT(LENGTH("+5"), 400);
    CHECK_INT(LENGTH("0x5"), 400);
    CHECK_INT(LENGTH("5, 5"), 400);
    CHECK_INT(LENGTH("5 5"), 400);
    CHECK_INT(LENGTH("18446744073709551621"), 400);
    CHECK_INT(LENGTH("5\r\nContent-Length:5"), 400);
    CHECK_INT(LENGTH("5\r\ntransfer-ENCODING: chunked"), 400);
    CHECK_INT(STATUS("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n"), 411);
    CHECK_INT(STATUS("POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nHost: a\r\n\r\n"), 411);
}

TEST(host_comes_exactly_once)
{
    CHECK_INT(STATUS("GET / HTTP/1.1\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.0\r\nX: 1\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"), 400);
    CHECK_INT(STATUS("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nAuthorization: y\r\n\r\n"),
              400);
}

static char big[PRT_HTTP_PEEK + 100];

/* "GET /aaa... HTTP/1.1" of n bytes, and one field */
static int long_line(size_t n)
{
    static const char tail[] = " HTTP/1.1\r\nHost: a\r\n\r\n";
    struct prt_http_head h;

    memset(big, 'a', n);
    memcpy(big, "GET /", 5);
    memcpy(big + n - 9, tail, sizeof tail - 1);
    return read_head((struct prt_str){big, n - 9 + sizeof tail - 1}, 4096, &h);
}

TEST(the_request_line_has_a_limit)
{
    struct prt_http_head h;

    CHECK_INT(long_line(PRT_HTTP_LINE_MAX), 0);
    CHECK_INT(long_line(PRT_HTTP_LINE_MAX + 1), 414);
    memset(big, 'A', sizeof big);
    CHECK_INT(read_head((struct prt_str){big, PRT_HTTP_LINE_MAX}, 4096, &h), -1);
    CHECK_INT(read_head((struct prt_str){big, PRT_HTTP_LINE_MAX + 3}, 4096, &h), 414);
}

/* one field so long that all fields together have n bytes without the empty line */
static int long_fields(size_t n)
{
    static const char first[] = "GET / HTTP/1.1\r\n", host[] = "Host: a\r\nX: ";
    size_t at = sizeof first - 1;
    struct prt_http_head h;

    memcpy(big, first, at);
    memset(big + at, 'x', n);
    memcpy(big + at, host, sizeof host - 1);
    memcpy(big + at + n - 2, "\r\n\r\n", 4);
    return read_head((struct prt_str){big, at + n + 2}, 4096, &h);
}

TEST(the_fields_have_a_limit)
{
    CHECK_INT(long_fields(PRT_HTTP_FIELDS_MAX), 0);
    CHECK_INT(long_fields(PRT_HTTP_FIELDS_MAX + 1), 431);
}

static int many_fields(int n)
{
    struct prt_http_head h;
    size_t at = (size_t)snprintf(big, sizeof big, "GET / HTTP/1.1\r\nHost: a\r\n");

    for (int i = 1; i < n; i++) {
        at += (size_t)snprintf(big + at, sizeof big - at, "X: 1\r\n");
    }
    at += (size_t)snprintf(big + at, sizeof big - at, "\r\n");
    return read_head((struct prt_str){big, at}, 4096, &h);
}

TEST(the_number_of_fields_has_a_limit)
{
    CHECK_INT(many_fields(100), 0);
    CHECK_INT(many_fields(101), 431);
}

TEST(whatever_is_not_refused_fits_the_peek_buffer)
{
    struct prt_head_scan scan = {.at = 0};
    struct prt_refusal why;

    memset(big, 'a', sizeof big);
    memcpy(big, "GET / HTTP/1.1\r\n", 16);
    CHECK(prt_head_scan((struct prt_str){big, PRT_HTTP_PEEK}, &scan, &why) == PRT_HEAD_BAD);
    CHECK_INT(why.status, 431);
}
