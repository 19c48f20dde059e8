#!/usr/bin/env bash
# Five serving parties on this machine and a patient that asks them twice: run.sh [PATIENT]
# Keys, records and ports are made in a temporary folder, which goes again at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../terminals.sh"
model="$repo/examples/cohort/risk.onnx"
servers=(hospital dna_company laboratory startup helper)

# keys, the template on free ports, and the servers' files without metrics
for name in "${servers[@]}" sarah; do privinfer keygen "$name" >/dev/null; done
mkdir patients
cp sarah.crt patients/
cp "$here"/*.toml "$model" .
free_ports draft.toml
sed -i.all -E '/^(listen|metrics)/d' hospital.toml dna_company.toml laboratory.toml startup.toml helper.toml
privinfer seal draft.toml --template --model risk.onnx --out template.toml

# the records of one test patient, as their owners keep them
mkdir -p inputs/sarah
python "$repo/examples/six_terminals/inputs.py" inputs/sarah "${1:-3}" >/dev/null

for name in "${servers[@]}"; do
    privinfer serve "$name" --config "$name.toml" 2>"$name.log" &
    started+=($!)
done
for name in "${servers[@]}"; do
    for _ in $(seq 300); do grep -q '"serving"' "$name.log" && break || sleep 0.1; done
done

for visit in first second; do
    privinfer ask --template template.toml --identity sarah.key --output "$visit"
done
python - <<'ANSWER'
import numpy as np
for visit in ("first", "second"):
    logit = np.load(f"{visit}/risk.npy")[0, 0]
    print(f"{visit} visit: risk {1 / (1 + np.exp(-logit)):.1%} (logit {logit:.6f})")
ANSWER

for pid in "${started[@]}"; do kill -TERM "$pid"; done
for pid in "${started[@]}"; do wait "$pid"; done
started=()
cat hospital.log
