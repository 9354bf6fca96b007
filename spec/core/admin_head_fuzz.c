/* admin_head_fuzz.c - a head read in two pieces is judged as when it is read at once, and what is
 * let through keeps what the rest of the room relies on. The first byte chooses the cut. */
#include "admin/admin_int.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static enum prt_head_state scan(struct prt_str in, size_t cut, struct prt_head_scan *s,
                                struct prt_refusal *why)
{
    enum prt_head_state st = prt_head_scan((struct prt_str){in.p, cut}, s, why);

    return st == PRT_HEAD_MORE ? prt_head_scan(in, s, why) : st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct prt_str in = {(const char *)data + 1, n ? n - 1 : 0};
    struct prt_head_scan whole = {.at = 0}, cut = {.at = 0};
    struct prt_refusal why = {.status = 0}, why_cut = {.status = 0};
    struct prt_http_head h;
    enum prt_head_state st;

    if (n < 1) {
        return 0;
    }
    st = scan(in, in.n, &whole, &why);
    prt_assert(scan(in, in.n * data[0] / 255, &cut, &why_cut) == st);
    prt_assert(st == PRT_HEAD_BAD ? why.status == why_cut.status : whole.at == cut.at);
    prt_assert(st != PRT_HEAD_MORE || whole.at < PRT_HTTP_PEEK);
    if (st == PRT_HEAD_WHOLE && prt_head_parse((struct prt_str){in.p, whole.at}, &h, &why)) {
        prt_assert(h.length <= PRT_HTTP_BODY_MAX && h.method.n && h.target.p[0] == '/');
        prt_assert(!memchr(h.host.p, '\n', h.host.n) && !memchr(h.target.p, ' ', h.target.n));
    }
    return 0;
}
