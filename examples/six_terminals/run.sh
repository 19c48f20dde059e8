#!/usr/bin/env bash
# All of README.md unattended, in a temporary folder and on free ports: run.sh [PATIENT]
# Prints what each of the six terminals would show; ends with the patient's answer, which she alone has.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../terminals.sh"
model="$repo/examples/cohort/risk.onnx"
names=(hospital dna_company laboratory startup helper patient)

# keys, inputs and draft
for name in "${names[@]}"; do privinfer keygen "$name" >/dev/null; done
python "$here/inputs.py" . "${1:-3}" >/dev/null
cp "$here/session.draft.toml" .
free_ports session.draft.toml
privinfer seal session.draft.toml --model "$model"

# the six terminals
start hospital --input xray=xray.npy
start dna_company --input dna=dna.npy
start laboratory --input blood=blood.npy
start startup --model "$model"
start helper
start patient --output answer
finish "${names[@]}"
