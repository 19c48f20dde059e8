#!/usr/bin/env bash
# All of README.md unattended, in a temporary folder and on free ports: run.sh [PATIENT]
# Prints what each of the six terminals would show; ends with the patient's answer, which she alone has.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../terminals.sh"
model="$repo/examples/cohort/risk-polynomial.onnx"
names=(hospital dna_company laboratory startup notary patient)

# keys, inputs, a fragment, and the draft
for name in "${names[@]}"; do privinfer keygen "$name" >/dev/null; done
python "$here/inputs.py" . "${1:-3}" >/dev/null
privinfer fragment keygen hospital >/dev/null
privinfer fragment encrypt hospital xray xray.npy --range 0:1
rm xray.npy # what the hospital keeps is encrypted
cp "$here/session.draft.toml" .
free_ports session.draft.toml
privinfer seal session.draft.toml --model "$model" --calibration calibration.npz

# the six terminals
start hospital --input xray=xray.fragment
start dna_company --input dna=dna.npy
start laboratory --input blood=blood.npy
start startup --model "$model" --calibration calibration.npz
start notary
start patient --output answer
finish "${names[@]}"
