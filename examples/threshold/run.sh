#!/usr/bin/env bash
# All of README.md unattended, in a temporary folder and on free ports: run.sh [PATIENT]
# Prints what each of the six terminals would show; ends with the patient's answer, which she alone has.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
command -v privinfer >/dev/null || PATH="$repo/.venv/bin:$PATH"
model="$repo/examples/cohort/risk-polynomial.onnx"
names=(hospital dna_company laboratory startup notary patient)

work=$(mktemp -d)
started=()
leave() {
    for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$work"
}
trap leave EXIT
trap 'exit 130' INT TERM
cd "$work"

# keys, inputs, a fragment, and the draft
for name in "${names[@]}"; do privinfer keygen "$name" >/dev/null; done
python "$here/inputs.py" . "${1:-3}" >/dev/null
privinfer fragment keygen hospital >/dev/null
privinfer fragment encrypt hospital xray xray.npy --range 0:1
rm xray.npy # what the hospital keeps is encrypted
cp "$here/session.draft.toml" .
python - session.draft.toml <<'FREE'
import re, socket, sys
text = open(sys.argv[1]).read()
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
ports = iter(held)
text = text.replace("connect_timeout = 300.0", "connect_timeout = 30.0")  # nobody types here
text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{next(ports).getsockname()[1]}", text)
open(sys.argv[1], "w").write(text)
FREE
privinfer seal session.draft.toml --model "$model" --calibration calibration.npz

# the six terminals
start() {
    local name=$1
    shift
    privinfer party "$name" --report "$name.json" "$@" >"$name.log" 2>&1 &
    started+=($!)
}
start hospital --input xray=xray.fragment
start dna_company --input dna=dna.npy
start laboratory --input blood=blood.npy
start startup --model "$model" --calibration calibration.npz
start notary
start patient --output answer

failed=0
for pid in "${started[@]}"; do
    wait "$pid" || failed=$?
done
started=()
for name in "${names[@]}"; do
    echo "== $name"
    cat "$name.log"
done
[ "$failed" -eq 0 ] || exit "$failed"
python - <<'ANSWER'
import json
import numpy as np
logit = np.load("answer/risk.npy")[0, 0]
report = json.load(open("patient.json"))
print(f"risk {1 / (1 + np.exp(-logit)):.1%} (logit {logit:.6f})")
print(report["trust"])
ANSWER
