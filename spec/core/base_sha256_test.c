/* base_sha256_test.c - SHA-256 against the published vectors and the lengths around a block's end.
 */
#include "base/sha256.h"
#include "test.h"

static const char *hex_of(const void *p, size_t n)
{
    static char out[PRT_SHA256_HEX];

    prt_sha256_hex(p, n, out);
    return out;
}

TEST(agrees_with_the_published_vectors)
{
    CHECK_STR(hex_of("", 0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_STR(hex_of("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_STR(hex_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(agrees_on_a_million_bytes)
{
    char *a = malloc(1000000);

    CHECK(a != NULL);
    if (a) {
        memset(a, 'a', 1000000);
        CHECK_STR(hex_of(a, 1000000),
                  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
    free(a);
}

TEST(every_length_gives_another_number)
{
    char zeros[200] = {0}, before[PRT_SHA256_HEX] = "";

    for (size_t n = 0; n < sizeof zeros; n++) {
        const char *now = hex_of(zeros, n);
        CHECK(strcmp(before, now) != 0);
        memcpy(before, now, sizeof before);
    }
}
