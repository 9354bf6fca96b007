#!/bin/sh
# Runs the suites, the C tests given as arguments and every file of specs, two at a time; then those
# that measure what the machine can do (tagged #alone) one by one. Ends with the sum of all:
# "N passed, N failed".
# OUT: folder of the build under test. BUSTED_FLAGS: more options for busted. ONLY=c|lua: one half.
# JOBS: how many at a time.
set -u
cd "$(dirname "$0")/.." || exit 2
dir=$(mktemp -d) || exit 2
trap 'rm -rf "$dir"' EXIT
export dir PRT_OUT="$OUT"
jobs=${JOBS:-$(nproc)}
[ "$jobs" -le "${JOBS:-2}" ] || jobs=2

# the long ones first, so that none of them ends the run by itself
LONG='pool_mutant|drivers|rest_|chaos|link_connect|interleave'

run() { # JOBS: the suites of standard input
  # a lane has ports of its own (spec/support/os.lua)
  xargs -r -P "$1" -n 1 --process-slot-var=PRT_LANE sh spec/suite.sh
}

[ "${ONLY:-}" = lua ] || printf '%s\n' "$@" >"$dir/suites"
[ "${ONLY:-}" = c ] || find spec -name '*_spec.lua' | sort >>"$dir/suites"
alone=$(grep -rl --include='*_spec.lua' '#alone' spec)
printf '%s\n' "$alone" >"$dir/alone"
grep -vxF -f "$dir/alone" "$dir/suites" >"$dir/together"
{ grep -E "$LONG" "$dir/together"; grep -vE "$LONG" "$dir/together"; } | run "$jobs"
grep -xF -f "$dir/alone" "$dir/suites" | run 1

echo "slowest:"
cat "$dir"/*.sum | sort -k 3 -rn | awk 'NR <= 10 { printf "%6.1f s  %s\n", $3, $4 }'
# a suite without a sum has not even told how it ended
suites=$(grep -c . "$dir/suites")
cat "$dir"/*.sum | awk -v suites="$suites" '
  { passed += $1; failed += $2 }
  END {
    if (NR < suites) { print suites - NR " suites left no result"; failed += suites - NR }
    printf "%d passed, %d failed\n", passed, failed
    exit failed > 0
  }'
