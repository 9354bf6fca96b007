/* tls.h - OpenSSL on plain descriptors: the client side of TLS, and reading and writing on both. */
#ifndef PRT_PROXY_TLS_H
#define PRT_PROXY_TLS_H
#include "base/base.h"

#include <sys/types.h>

struct ssl_ctx_st;
struct ssl_st;

/** A context for listeners: TLS 1.2 and newer, no tickets, no renegotiation, no compression. Errors
 * name the file and say what is wrong with it (missing, not readable, key does not belong to
 * certificate). */
PRT_MUST_CHECK poolrt_rc prt_tls_server_ctx(struct ssl_ctx_st **out, const char *cert,
                                            const char *key, struct prt_err *err) ON_ANY;
void prt_tls_ctx_free(struct ssl_ctx_st *ctx) ON_ANY;
/** The accepting side on fd. Modes: partial writes, moving buffers, buffers released when idle,
 *  read-ahead. NULL: no memory. */
struct ssl_st *prt_tls_accept_new(struct ssl_ctx_st *ctx, int fd) ON_WORKER;
/** The same modes for an SSL that libpq opened. */
void prt_tls_adopt(struct ssl_st *ssl) ON_WORKER;

enum prt_io_rc {
    PRT_IO_AGAIN = -1,
    PRT_IO_CLOSED = -2,
    PRT_IO_FAILED = -3,
    PRT_IO_WANT_WRITE = -4,
    PRT_IO_END = -5 /* of what comes in (FIN, close_notify); the other direction may be open */
};
/** 1: done; PRT_IO_AGAIN / PRT_IO_WANT_WRITE: when the descriptor is readable / writable; _CLOSED,
 *  _FAILED: over (why, when not NULL, is for the log). */
int prt_tls_handshake(struct ssl_st *ssl, const char **why) ON_WORKER;
/** Bytes, or a PRT_IO_ code. _WANT_WRITE from a read, _AGAIN from a write can happen (key update).
 */
ssize_t prt_tls_read(struct ssl_st *ssl, void *p, size_t n) ON_WORKER;
ssize_t prt_tls_write(struct ssl_st *ssl, const void *p, size_t n) ON_WORKER;
/** Decrypted bytes wait inside, which no poll will tell. */
bool prt_tls_has_pending(const struct ssl_st *ssl) ON_WORKER;
/** Sends close_notify if it can be sent at once; frees. Does not close the descriptor. NULL
 * accepted. */
void prt_tls_free(struct ssl_st *ssl) ON_WORKER;
/** Data of tls-server-end-point for channel binding: hash of our certificate. Returns its length
 * (at most 64), 0: none. */
size_t prt_tls_end_point(struct ssl_st *ssl, uint8_t out[64]) ON_WORKER;
#endif
