/* abi.h - what a policy sees of a request and of a partition.
 *
 * One text for two readers: the C compiler, and ffi.cdef in every policy's state. So it is written
 * inside PRT_ABI(), which vm.c defines once more to get the same words as a string; nothing but
 * plain structs may stand here. A change of layout or meaning takes a new PRT_LUA_ABI; policy.lua
 * refuses to run when number or size differ.
 *
 * A policy gets `const struct prt_lua_req &`, so it can read the members and nothing else: only
 * scalars of at most 53 bits, no pointer, no array. Strings lie in prt_lua_view, which policies
 * never see; policy.lua hands out copies under names such as req.tenant. */
#ifndef PRT_ABI
#define PRT_ABI(...) __VA_ARGS__
#endif
#ifndef PRT_LUAHOST_ABI_H
#define PRT_LUAHOST_ABI_H
#include <stdint.h>
#define PRT_LUA_ABI 1
#endif

/* clang-format off */
PRT_ABI(
struct prt_lua_req {
    double now, waited; /* seconds */
    double session;
    int32_t rank;       /* enum prt_priority: 0 low .. 3 critical */
    uint32_t unused;
};
struct prt_lua_part {
    uint32_t active, waiting, max, min;
    uint32_t pool_active, pool_idle, pool_total, pool_max, pool_waiting;
    uint32_t unused;
};
struct prt_lua_text {
    const char *p;
    size_t n;
};
struct prt_lua_view {
    uint32_t abi, size;
    struct prt_lua_req req;
    struct prt_lua_part part;
    struct prt_lua_text tenant, user, database, application, client_addr, part_name;
};
)
/* clang-format on */
