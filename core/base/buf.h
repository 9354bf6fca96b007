/* buf.h - a bounded byte buffer: bytes that a peer could not take yet, or a message being built. */
#ifndef PRT_BUF_H
#define PRT_BUF_H
#include "base/base.h"

/** All zero is an empty buffer that owns nothing. `off` bytes at the front are already used. */
struct prt_buf {
    uint8_t *p;
    uint32_t off, n, cap; /* used up, end of data, allocated */
    bool failed; /* an append found no memory or passed `PRT_BUF_MAX`; data is incomplete */
};
#define PRT_BUF_MAX (64u << 20)

static inline size_t prt_buf_len(const struct prt_buf *b)
{
    return b->n - b->off;
}
static inline const uint8_t *prt_buf_data(const struct prt_buf *b)
{
    return b->p ? b->p + b->off : NULL;
}
/** Append; moves unused room to the end first. false: no memory, and `failed` is set (sticky). */
bool prt_buf_add(struct prt_buf *b, const void *p, size_t n);
/** Room for n more bytes at the end, to be filled by the caller who then adds to b->n; or NULL. */
uint8_t *prt_buf_room(struct prt_buf *b, size_t n);
/** n bytes at the front are done with. Frees the memory when nothing is left. */
void prt_buf_eat(struct prt_buf *b, size_t n);
/** Forget the data, keep the memory: for a buffer that is built again and again. */
static inline void prt_buf_reset(struct prt_buf *b)
{
    b->off = b->n = 0;
    b->failed = false;
}
void prt_buf_free(struct prt_buf *b);
#endif
