#!/bin/sh
# Runs the C tests given as arguments, one per processor at a time, then busted, and ends with the sum:
# "N passed, N failed".
# OUT: folder of the build under test. BUSTED_FLAGS: more options for busted. ONLY=c|lua: one half.
set -u
cd "$(dirname "$0")/.." || exit 2
dir=$(mktemp -d) || exit 2
log=$dir/log
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0

# add NAME STATUS: reads the last "N passed, N failed" in the log; a program that died without one,
# or with a bad status and no failure of its own, is one failure.
add() {
  line=$(grep -Eo '[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
  p=${line%% *} f=${line#*, }; f=${f%% *}
  if [ -z "$line" ]; then echo "$1: died with status $2"; p=0 f=1; fi
  if [ "$2" -ne 0 ] && [ "$f" -eq 0 ]; then echo "$1: status $2"; f=1; fi
  passed=$((passed + p)) failed=$((failed + f))
}

if [ "${ONLY:-}" != lua ]; then
  export dir
  # shellcheck disable=SC2016
  printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 sh -c \
    'name=$(basename "$1"); timeout 900 "$1" >"$dir/$name" 2>&1; echo $? >"$dir/$name.status"' run
  for t in "$@"; do
    name=$(basename "$t")
    log=$dir/$name status=$(cat "$dir/$name.status")
    if [ $status -eq 0 ]; then tail -n 1 "$log"; else cat "$log"; fi
    add "$t" "$status"
  done
  log=$dir/log
fi

if [ "${ONLY:-}" != c ] && [ -n "$(find spec -name '*_spec.lua' | head -n 1)" ]; then
  export PRT_OUT="$OUT"
  { busted --lua=luajit -o spec/tally.lua ${BUSTED_FLAGS:-} spec 2>&1; echo "status $?"; } | tee "$log"
  status=$(sed -n 's/^status \([0-9]*\)$/\1/p' "$log" | tail -n 1)
  add busted "${status:-1}"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
