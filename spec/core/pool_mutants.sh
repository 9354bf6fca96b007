#!/bin/sh
# Builds the pool engine with one fault of pool_mutants.txt after the other and runs the test that
# must find it. First the tests run without a fault: they must pass. Ends with "N found, N missed";
# what found each stands in the file "found" beside the products.
# $1: folder for the products. CC: the compiler. ONLY=TEXT: faults whose name contains it.
set -u
here=$(dirname "$0") out=$1
: "${CC:=cc}"
flags="-std=c11 -D_GNU_SOURCE -DPRT_DEBUG -O1 -w -Icore -I$here -pthread"
mkdir -p "$out" && rm -rf "$out"/m_* && : >"$out/found" || exit 2
found=0 missed=0

# Every source by itself, so that a fault costs one compilation.
compile() { # SOURCE OBJECT [FLAGS]: an engine's folder given with -I comes before core/
  # shellcheck disable=SC2086
  $CC ${3:-} $flags -c "$1" -o "$2"
}

# run TEST PROGRAM: enough steps for every fault, and an end if one makes it hang
run() {
  case $1 in
  random*) PRT_OPS=300000 PRT_SEED=${1#random} timeout 20 "$2" ;;
  gaps)
    PRT_STEPS=400000 timeout 30 "$2" no_wake_up_is_lost_between_two_threads_with_one_slot \
      nobody_holds_a_lease_in_a_quiet_pause ;;
  stress) PRT_STEPS=300000 timeout 30 "$2" ;;
  engine) timeout 20 "$2" ;;
  esac >"$2.log" 2>&1
}

for f in base error hash hist; do compile core/base/$f.c "$out/base_$f.o" || exit 2; done
for f in core/pool/*.c; do compile "$f" "$out/pool_$(basename "$f" .c).o" || exit 2; done
for t in random stress engine; do
  compile "$here/pool_${t}_test.c" "$out/${t}_test.o" || exit 2
  $CC -pthread "$out"/base_*.o "$out"/pool_*.o "$out/${t}_test.o" -o "$out/$t" || exit 2
  run $t "$out/$t" || { echo "without a fault, $t fails:"; cat "$out/$t.log"; missed=$((missed + 1)); }
done

# mutate FILE FROM TO: the copy of core/pool in $m gets the fault
mutate() {
  FROM=$2 TO=$3 awk '
    BEGIN { from = ENVIRON["FROM"]; to = ENVIRON["TO"] }
    (i = index($0, from)) { n++; $0 = substr($0, 1, i - 1) to substr($0, i + length(from)) }
    { print }
    END { exit n != 1 }' "core/pool/$1" >"$m/pool/$1"
}

n=0
while IFS= read -r line; do
  case $line in '#'* | '') continue ;; esac
  # "\|" is a bar within a text
  line=$(printf '%s' "$line" | sed 's/\\|/\x01/g')
  oldifs=$IFS IFS='|'
  set -f; set -- $line; set +f
  IFS=$oldifs
  name=$1 t=$2 file=$3
  from=$(printf '%s.' "$4" | tr '\001' '|') to=$(printf '%s.' "$5" | tr '\001' '|')
  from=${from%.} to=${to%.}
  case $name in *"${ONLY:-}"*) ;; *) continue ;; esac
  n=$((n + 1)) m=$out/m_$n
  mkdir -p "$m/pool" && cp core/pool/*.[ch] "$m/pool/" || exit 2
  if ! mutate "$file" "$from" "$to"; then
    echo "stale: \"$name\" does not fit core/pool/$file exactly once"; missed=$((missed + 1)); continue
  fi
  obj=${t%%[0-9]*} objs=
  [ "$t" = gaps ] && obj=stress
  for f in core/pool/*.c; do
    b=$(basename "$f" .c) o=$out/pool_$b.o
    if [ "$file" = "$b.c" ] || [ "$file" = pool_int.h ]; then
      o=$m/$b.o
      compile "$m/pool/$b.c" "$o" "-I$m" || { missed=$((missed + 1)); continue 2; }
    fi
    objs="$objs $o"
  done
  # shellcheck disable=SC2086
  $CC -pthread "$out"/base_*.o $objs "$out/${obj}_test.o" -o "$m/$t" || exit 2
  run "$t" "$m/$t"; status=$?
  if [ $status -eq 0 ] || [ $status -eq 124 ]; then
    echo "missed: $name ($t, status $status)"; missed=$((missed + 1))
  else
    echo "$name: $(grep -hv passed "$m/$t.log" | grep -v '^  seed' | head -n 1 | cut -c 1-120)" >>"$out/found"
    found=$((found + 1))
  fi
done <"$here/pool_mutants.txt"
echo "$found found, $missed missed"
[ $missed -eq 0 ]
