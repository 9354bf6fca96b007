/* embedded.c - a Lua state that finds poolrt's own modules in the binary.
 * Owns: nothing; the state is the caller's.   Threads: any, a state is used by one at a time.
 * Idea: lua/poolrt/NAME.lua rides in the binary (prt_embedded_lua, made by the Makefile) and is put
 * into package.preload, so a daemon reads no Lua file but the configuration and the policies, and
 * nothing that lies in the current directory is ever run. C modules (cjson) come from the system.
 */
#include "luahost/luahost.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <string.h>

static int load_embedded(lua_State *L)
{
    const struct prt_embedded_file *f = lua_touserdata(L, lua_upvalueindex(1));
    const char *name = lua_pushfstring(L, "=%s", f->name);

    if (luaL_loadbuffer(L, f->begin, (size_t)(f->end - f->begin), name) != 0) {
        return lua_error(L);
    }
    lua_pushstring(L, f->name);
    lua_call(L, 1, 1);
    return 1;
}

static void preload_all(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    for (const struct prt_embedded_file *f = prt_embedded_lua; f->name; f++) {
        union {
            const void *in;
            void *out;
        } row = {.in = f}; /* Lua's pointers are not const; it is only read */
        lua_pushlightuserdata(L, row.out);
        lua_pushcclosure(L, load_embedded, 1);
        lua_setfield(L, -2, f->name);
    }
    lua_pop(L, 2);
}

/* package.path: none. package.cpath: absolute folders only. */
static void narrow_paths(lua_State *L)
{
    luaL_Buffer kept;

    lua_getglobal(L, "package");
    lua_pushliteral(L, "");
    lua_setfield(L, -2, "path");
    lua_getfield(L, -1, "cpath");
    const char *p = lua_tostring(L, -1);
    luaL_buffinit(L, &kept);
    while (p && *p) {
        size_t n = strcspn(p, ";");
        if (*p == '/') {
            luaL_addlstring(&kept, p, n);
            luaL_addchar(&kept, ';');
        }
        p += n + (p[n] == ';');
    }
    luaL_pushresult(&kept);
    lua_setfield(L, -3, "cpath");
    lua_pop(L, 2);
}

static int open_all(lua_State *L)
{
    luaL_openlibs(L);
    preload_all(L);
    narrow_paths(L);
    return 0;
}

lua_State *prt_lua_new(void)
{
    lua_State *L = luaL_newstate();

    if (!L) {
        return NULL;
    }
    if (lua_cpcall(L, open_all, NULL) != 0) {
        lua_close(L);
        return NULL;
    }
    return L;
}
