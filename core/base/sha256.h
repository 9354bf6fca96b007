/* sha256.h - SHA-256, for telling one text from another where people see the number (policy files).
 * Passwords and signatures use OpenSSL; rooms without it use this. */
#ifndef PRT_SHA256_H
#define PRT_SHA256_H
#include "base/base.h"

#define PRT_SHA256_HEX 65 /* 64 lower-case hexadecimal digits and the final NUL */

void prt_sha256_hex(const void *p, size_t n, char out[PRT_SHA256_HEX]);
#endif
