/* pool_mutant_test.c - shows that the engine's tests bite: pool_mutants.sh builds the engine with
 * one fault after the other (pool_mutants.txt), and each must be found. By a script and not by
 * switches in the engine, so that its sources stay free of them. Run from the top of the tree; OUT:
 * folder of the build, CC: the compiler (cc). */
#include "test.h"

TEST(every_seeded_fault_is_found)
{
    const char *out = getenv("OUT");
    char cmd[512];
    int n = snprintf(cmd, sizeof cmd, "sh spec/core/pool_mutants.sh '%s/mutants' 2>&1",
                     out ? out : "build/test");

    CHECK(n > 0 && (size_t)n < sizeof cmd);
    CHECK_INT(system(cmd), 0);
}
