#!/bin/sh
# Runs one suite, a C test or a file of specs, for spec/run.sh, and shows it when it has ended: a
# line with how long it took and how many passed; then, if it failed, all that it wrote, else what
# begins with "-- " or names a seed.
# $1: the suite. dir, from there: where its log is kept, and in NAME.sum "passed failed seconds path".
suite=$1 name=$(echo "$1" | tr / _)
log=$dir/$name.log
begun=$(date +%s%N)
case $suite in
*_spec.lua) timeout -k 10 1800 busted --lua=luajit -o spec/tally.lua ${BUSTED_FLAGS:-} "$suite" ;;
*) timeout -k 10 900 "$suite" ;;
esac >"$log" 2>&1 </dev/null
status=$?
seconds=$(($(date +%s%N) / 100000000 - begun / 100000000))
seconds=$((seconds / 10)).$((seconds % 10))

# a suite that died before its last line, or with a bad status and no failure of its own, has one
line=$(grep -Eo '[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
passed=${line%% *} failed=${line#*, } failed=${failed%% *} died=
if [ -z "$line" ]; then passed=0 failed=1 died=", died with status $status"; fi
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1 died=", status $status"; fi

{
  printf '%6s s  %s: %d passed, %d failed%s\n' "$seconds" "$suite" "$passed" "$failed" "$died"
  if [ "$failed" -eq 0 ]; then
    sed -nE '/^-- spec/d; /^-- |SEED=/s/^[- ]*/          /p' "$log"
  else
    cat "$log"
  fi
} >"$log.shown"
flock "$dir" cat "$log.shown" # not in the middle of what another suite shows
echo "$passed $failed $seconds $suite" >"$dir/$name.sum"
