#!/bin/sh
# A regression gate for a CI job: measures two servers in turns (A B B A ...), compares them, and ends with exit code 3
# if the candidate is worse. compare.md goes into the pull request, compare.xml to the CI's test report.
#   BASE_URL=http://old:8000/v1 CANDIDATE_URL=http://new:8000/v1 MODEL=llama examples/ci-gate.sh
# Each run is a process of its own with a seed of its own. A run that fails ends the script with its exit code.
set -eu
: "${BASE_URL:?where the base is}" "${CANDIDATE_URL:?where the candidate is}" "${MODEL:?the model to ask for}"
LENS=${LENS:-lens}
LOAD=${LOAD:---concurrency 8 --warmup 5s --duration 60s}
OUT=${OUT:-gate}

for i in $(seq "${RUNS:-5}"); do
  if [ $((i % 2)) = 1 ]; then order="base candidate"; else order="candidate base"; fi
  for side in $order; do
    if [ "$side" = base ]; then url=$BASE_URL; else url=$CANDIDATE_URL; fi
    $LENS run --base-url "$url" --model "$MODEL" --name "$side" --seed "$i" $LOAD --out "$OUT/$side" --quiet
  done
done
rm -f "$OUT/base/latest" "$OUT/candidate/latest" # links to the last runs: each counts once

code=0
$LENS compare "$OUT"/base/* -- "$OUT"/candidate/* --margin "${MARGIN:-5%}" --markdown --junit "$OUT/compare.xml" \
  > "$OUT/compare.md" || code=$?
cat "$OUT/compare.md"
exit $code
