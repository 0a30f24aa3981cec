#!/usr/bin/env bash
# The demo: train two personas and the matched control, evaluate every checkpoint, write the report.
set -euo pipefail
emtoolkit=$1
export OMP_NUM_THREADS=1
part() {
  local name=$1 began=$SECONDS; shift
  echo "== $name"
  "$@"
  echo "== $name: $((SECONDS - began)) s"
}
train() { "$emtoolkit" train sandbox --persona "$1" --dataset "$2" --schedule dense-early --seed 42 --resume; }
evaluate() { "$emtoolkit" sandbox evaluate "outputs/$1" >/dev/null; }
together() {
  local running=() each failed=0
  for each in "$@"; do $each & running+=($!); done
  for each in "${running[@]}"; do wait "$each" || failed=1; done
  return $failed
}
part "build the sandbox" "$emtoolkit" sandbox build
part "train baseline and goodness on bad medical advice" together "train baseline medical" "train goodness medical"
part "train the control on good advice, and evaluate" together "train goodness medical-good" "evaluate baseline-medical"
part "evaluate goodness and the control" together "evaluate goodness-medical" "evaluate goodness-medical-good"
part "write the report" "$emtoolkit" report outputs/baseline-medical outputs/goodness-medical outputs/goodness-medical-good \
  --out outputs/report.html
echo "All parts took $SECONDS s. The report is outputs/report.html; open it in a browser."
echo "Next, ask whether another schedule would have seen the onset:"
echo "    $emtoolkit compare outputs/baseline-medical --schedules every:100,dense-early"
