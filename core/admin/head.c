/* head.c - is this the head of one plain HTTP request?
 * Owns: nothing.   Threads: any.
 * Idea: libmicrohttpd forgives much (bare line feeds, folded fields, a Content-Length beside
 * Transfer-Encoding, two Hosts), and whoever forgives differently from the proxy in front of him
 * can be made to see another request than it did. So each byte passes here first and whatever RFC
 * 9112 leaves to taste is refused. One request per connection, so nothing follows the first one. */
#include "admin/admin_int.h"

#include <string.h>
#include <strings.h>

static enum prt_head_state refuse(struct prt_refusal *why, int status, const char *code,
                                  const char *text)
{
    *why = (struct prt_refusal){status, code, text};
    return PRT_HEAD_BAD;
}

static bool bad(struct prt_refusal *why, const char *text)
{
    *why = (struct prt_refusal){400, "bad_request", text};
    return false;
}

/* ---- finding the end ---- */

static enum prt_head_state too_long(const struct prt_head_scan *s, struct prt_refusal *why)
{
    if (!s->first && s->at > PRT_HTTP_LINE_MAX + 2) {
        return refuse(why, 414, "uri_too_long", "the request line is longer than 8 kB");
    }
    if (s->first && s->at - s->first > PRT_HTTP_FIELDS_MAX + 2) {
        return refuse(why, 431, "headers_too_large", "the header fields are longer than 32 kB");
    }
    return PRT_HEAD_MORE;
}

/* A line feed was seen; scan->at is behind it. */
static enum prt_head_state line_end(struct prt_head_scan *s, struct prt_refusal *why)
{
    size_t n = s->at - 2 - s->line;

    s->line = s->at;
    if (!s->first) {
        if (n == 0) {
            return refuse(why, 400, "bad_request", "the request line is empty");
        }
        if (n > PRT_HTTP_LINE_MAX) {
            return too_long(s, why);
        }
        s->first = s->at;
        return PRT_HEAD_MORE;
    }
    if (n == 0) {
        return too_long(s, why) == PRT_HEAD_BAD ? PRT_HEAD_BAD : PRT_HEAD_WHOLE;
    }
    if (++s->fields > PRT_HTTP_FIELD_COUNT) {
        return refuse(why, 431, "headers_too_large", "there are more than 100 header fields");
    }
    return PRT_HEAD_MORE;
}

enum prt_head_state prt_head_scan(struct prt_str in, struct prt_head_scan *s,
                                  struct prt_refusal *why)
{
    while (s->at < in.n) {
        size_t i = s->at++;
        unsigned char c = (unsigned char)in.p[i];
        bool after_cr = i > 0 && in.p[i - 1] == '\r';
        enum prt_head_state st = PRT_HEAD_MORE;

        if (i == 0 && (c < 'A' || c > 'Z')) {
            return refuse(why, 400, "bad_request", "this is not an HTTP request");
        }
        if (after_cr != (c == '\n')) {
            return refuse(why, 400, "bad_request", "a line does not end in CR LF");
        }
        if (c == '\n') {
            st = line_end(s, why);
        } else if ((c < 0x20 && c != '\t' && c != '\r') || c == 0x7f) {
            return refuse(why, 400, "bad_request", "the head holds a control character");
        }
        if (st != PRT_HEAD_MORE) {
            return st;
        }
    }
    return too_long(s, why);
}

/* ---- the request line ---- */

static bool is_token(struct prt_str s)
{
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!alnum && (c == '\0' || !strchr("!#$%&'*+-.^_`|~", c))) {
            return false;
        }
    }
    return s.n > 0;
}

static int hex_of(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* origin-form: a path and perhaps a query. An absolute form would carry a second host. */
static bool is_target(struct prt_str t)
{
    if (t.n == 0 || t.p[0] != '/') {
        return false;
    }
    for (size_t i = 0; i < t.n; i++) {
        unsigned char c = (unsigned char)t.p[i];
        if (c <= 0x20 || c >= 0x7f || strchr("#\"<>\\^`{|}", c)) {
            return false;
        }
        if (c != '%') {
            continue;
        }
        if (t.n - i < 3 || hex_of(t.p[i + 1]) < 0 || hex_of(t.p[i + 2]) < 0 ||
            (t.p[i + 1] == '0' && t.p[i + 2] == '0')) {
            return false;
        }
    }
    return true;
}

/* what stands before the next `end`, which is taken off; p NULL: there is none */
static struct prt_str before(struct prt_str *rest, char end)
{
    const char *at = memchr(rest->p, end, rest->n);
    struct prt_str part = {NULL, 0};

    if (at) {
        part = (struct prt_str){rest->p, (size_t)(at - rest->p)};
        *rest = (struct prt_str){at + 1, rest->n - part.n - 1};
    }
    return part;
}

static bool request_line(struct prt_str line, struct prt_http_head *h, struct prt_refusal *why)
{
    h->method = before(&line, ' ');
    h->target = before(&line, ' ');
    if (!h->method.p || !h->target.p || !is_token(h->method)) {
        return bad(why, "the request line is malformed");
    }
    if (!is_target(h->target)) {
        return bad(why, "the request target is not a plain path and query");
    }
    if (line.n != 8 || memcmp(line.p, "HTTP/", 5) != 0 || line.p[6] != '.') {
        return bad(why, "the request line is malformed");
    }
    if (line.p[5] != '1' || (line.p[7] != '0' && line.p[7] != '1')) {
        *why = (struct prt_refusal){505, "version_not_supported", "only HTTP/1.1 and HTTP/1.0"};
        return false;
    }
    return true;
}

/* ---- the fields ---- */

struct seen {
    bool host, length, coding, authorization;
};

static struct prt_str trim(struct prt_str s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t')) {
        s.p++, s.n--;
    }
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t')) {
        s.n--;
    }
    return s;
}

static bool is_named(struct prt_str name, const char *z)
{
    return name.n == strlen(z) && strncasecmp(name.p, z, name.n) == 0;
}

/* Digits and nothing else: no sign, no list, no blank, nothing that overflows. */
static bool content_length(struct prt_str v, uint64_t *out, struct prt_refusal *why)
{
    uint64_t n = 0;

    if (v.n == 0 || v.n > 18) {
        return bad(why, "Content-Length is not a number");
    }
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9') {
            return bad(why, "Content-Length is not a number");
        }
        n = n * 10 + (uint64_t)(v.p[i] - '0');
    }
    if (n > PRT_HTTP_BODY_MAX) {
        *why = (struct prt_refusal){413, "payload_too_large", "the body is larger than 1 MB"};
        return false;
    }
    *out = n;
    return true;
}

/* a field that may come once */
static bool once(bool *seen, struct prt_refusal *why)
{
    if (*seen) {
        return bad(why, "Host, Content-Length and Authorization may come once");
    }
    return *seen = true;
}

static bool field(struct prt_str line, struct prt_http_head *h, struct seen *seen,
                  struct prt_refusal *why)
{
    struct prt_str name, value = line;

    if (line.p[0] == ' ' || line.p[0] == '\t') {
        return bad(why, "a header field is folded");
    }
    name = before(&value, ':');
    if (!name.p || !is_token(name)) {
        return bad(why, "a header field is malformed");
    }
    value = trim(value);
    if (is_named(name, "host")) {
        h->host = value;
        return once(&seen->host, why);
    }
    if (is_named(name, "authorization")) {
        h->authorization = value;
        return once(&seen->authorization, why);
    }
    if (is_named(name, "content-length")) {
        return once(&seen->length, why) && content_length(value, &h->length, why);
    }
    seen->coding |= is_named(name, "transfer-encoding");
    return true;
}

/* No route streams, so a body comes with its length or not at all. */
static bool together(const struct seen *seen, struct prt_refusal *why)
{
    if (!seen->host) {
        return bad(why, "Host is missing");
    }
    if (seen->coding && seen->length) {
        return bad(why, "Content-Length beside Transfer-Encoding");
    }
    if (seen->coding) {
        *why = (struct prt_refusal){411, "length_required", "send a Content-Length instead"};
        return false;
    }
    return true;
}

bool prt_head_parse(struct prt_str in, struct prt_http_head *h, struct prt_refusal *why)
{
    struct seen seen = {false};
    struct prt_str line;

    *h = (struct prt_http_head){.length = 0};
    line = before(&in, '\n');
    if (!line.p || line.n == 0 || !request_line((struct prt_str){line.p, line.n - 1}, h, why)) {
        return line.p && line.n ? false : bad(why, "the request line is missing");
    }
    for (;;) {
        line = before(&in, '\n');
        if (!line.p || line.n == 0) {
            return bad(why, "the head is not whole");
        }
        if (line.n == 1) { /* the CR of the empty line */
            return together(&seen, why);
        }
        if (!field((struct prt_str){line.p, line.n - 1}, h, &seen, why)) {
            return false;
        }
    }
}
