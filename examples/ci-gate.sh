#!/bin/sh
# A regression gate for a CI job: measures two servers in turns (A B B A ...) and ends with exit code 3 if the candidate
# is worse. compare.md goes into the pull request, compare.xml to the CI's test report.
#   BASE_URL=http://old:8000/v1 CANDIDATE_URL=http://new:8000/v1 MODEL=llama examples/ci-gate.sh
# The runs and report.html are in a directory of $OUT; `lens compare` reads it again, with another margin for example.
set -eu
: "${BASE_URL:?where the base is}" "${CANDIDATE_URL:?where the candidate is}" "${MODEL:?the model to ask for}"
OUT=${OUT:-gate}
mkdir -p "$OUT"

code=0
${LENS:-lens} run --base-url "$CANDIDATE_URL" --model "$MODEL" ${LOAD:---concurrency 8 --warmup 5s --duration 60s} \
  --repeat "${RUNS:-5}" --against "$BASE_URL" --margin "${MARGIN:-5%}" \
  --name gate --out "$OUT" --quiet --markdown --junit "$OUT/compare.xml" > "$OUT/compare.md" || code=$?
cat "$OUT/compare.md"
exit $code
