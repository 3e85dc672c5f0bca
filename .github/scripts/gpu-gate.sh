#!/usr/bin/env bash
# The steps of .github/workflows/gpu-gate.yml, so that they can be run and tested by hand.
#
#   gpu-gate.sh measure   run the benchmarks, store the run; a failed gate does not stop the job
#   gpu-gate.sh compare   compare the run with its baseline as Markdown, JSON and HTML
#   gpu-gate.sh comment   put the Markdown under the pull request, or renew it there (needs gh,
#                         PULL_REQUEST and GITHUB_REPOSITORY)
#   gpu-gate.sh verdict   exit 0, or 1 with a line that says why
#
# Environment: EWQ_STORAGE  pytest-benchmark's storage folder
#              EWQ_OUT      folder for reports, and for what one step tells the next
#              EWQ_BASELINE ancestor (default), newest, a file, a number or a commit
#              EWQ_MODEL    model to measure (default: the embedded one)
#              EWQ_SELECT   pytest -k expression (default: ewq)
#              EWQ_REQUIRE_BASELINE  true: a run without a comparable baseline fails
#              EWQ_RESUME   true: go on with an interrupted run
set -euo pipefail

storage=${EWQ_STORAGE:-.benchmarks}
out=${EWQ_OUT:-gate}
baseline=${EWQ_BASELINE:-ancestor}
mkdir -p "$out"

newest_stored() {
  find "$storage" -name '[0-9][0-9][0-9][0-9]_*.json' -printf '%T@\t%p\n' 2>/dev/null |
    sort -n | tail -n 1 | cut -f 2
}

measure() {
  local before after status=0
  # With "=": before it knows our options, pytest takes a path after a space for one to test,
  # and looks for its configuration there.
  local options=(benchmarks/ -k "${EWQ_SELECT:-ewq}" --benchmark-autosave
    "--benchmark-storage=$storage" "--ewq-baseline=$baseline" "--junitxml=$out/junit.xml")
  if [[ -n ${EWQ_MODEL:-} ]]; then options+=("--ewq-model=$EWQ_MODEL"); fi
  if [[ ${EWQ_REQUIRE_BASELINE:-} == true ]]; then options+=(--ewq-require-baseline); fi
  if [[ ${EWQ_RESUME:-} == true ]]; then options+=(--ewq-resume); fi
  rm -f "$out/run.json" "$out/run.path" "$out/measure.status"
  before=$(newest_stored)
  python -m pytest "${options[@]}" || status=$?
  echo "$status" > "$out/measure.status"
  after=$(newest_stored)
  if [[ -n $after && $after != "$before" ]]; then
    cp "$after" "$out/run.json"
    echo "$after" > "$out/run.path"
  fi
  # 1 is "a gate failed": the comparison is still to be made, and the verdict fails the job.
  if ((status > 1)); then
    echo "::error::the benchmarks could not be run (pytest exit code $status)"
    exit "$status"
  fi
}

compare() {
  local status=0 format run
  rm -f "$out/comment.md"
  run=$(cat "$out/run.path" 2>/dev/null || true)
  if [[ -z $run ]]; then
    echo "no run was stored" > "$out/compare.error"
    status=2
  else
    python -m ewq compare "$baseline" "$run" --storage "$storage" --format md \
      -o "$out/comment.md" 2> "$out/compare.error" || status=$?
  fi
  echo "$status" > "$out/compare.status"
  if [[ -f $out/comment.md ]]; then
    for format in json html; do
      python -m ewq compare "$baseline" "$run" --storage "$storage" --format "$format" \
        -o "$out/compare.$format" || true
    done
  else
    write_excuse
  fi
  if [[ -n ${GITHUB_STEP_SUMMARY:-} ]]; then cat "$out/comment.md" >> "$GITHUB_STEP_SUMMARY"; fi
}

# What stands in the comment where nothing could be compared.
write_excuse() {
  {
    echo "### ewq: not comparable"
    echo
    tail -n 1 "$out/compare.error"
  } > "$out/comment.md"
}

# One comment a pull request, known by its heading: other workflows write as the same bot.
comment() {
  local comments="repos/$GITHUB_REPOSITORY/issues/$PULL_REQUEST/comments" id
  id=$(gh api --paginate "$comments" --jq '.[] | select(.user.type == "Bot")
    | select(.body | startswith("### ewq: ")) | .id' | tail -n 1)
  if [[ -n $id ]]; then
    gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$id" \
      --field "body=@$out/comment.md"
  else
    gh api --silent --method POST "$comments" --field "body=@$out/comment.md"
  fi
}

verdict() {
  local measured compared
  measured=$(cat "$out/measure.status" 2>/dev/null || echo 3)
  compared=$(cat "$out/compare.status" 2>/dev/null || echo 3)
  if ((measured != 0)); then fail "a gate failed or a benchmark could not be measured"; fi
  case $compared in
    0) echo "no regression" ;;
    1) fail "a metric got worse than in the baseline: see the comparison" ;;
    2)
      if [[ ${EWQ_REQUIRE_BASELINE:-} == true ]]; then fail "there is no comparable baseline"; fi
      echo "::warning::nothing to compare with: $(tail -n 1 "$out/compare.error")"
      ;;
    *) fail "the comparison itself failed" ;;
  esac
}

fail() {
  echo "::error::$1"
  exit 1
}

case ${1:-} in
  measure | compare | comment | verdict) "$1" ;;
  *)
    echo "usage: gpu-gate.sh measure|compare|comment|verdict" >&2
    exit 2
    ;;
esac
