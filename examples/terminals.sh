# What the run.sh of the examples share; to be sourced, with `here` set to the example's folder.
# Goes to a temporary folder that is removed at the end, with every process in `started`.
repo=$(cd "$here/../.." && pwd)
command -v privinfer >/dev/null || PATH="$repo/.venv/bin:$PATH"

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

# free_ports DRAFT: every address in it becomes one of this machine that nobody uses
free_ports() {
    python - "$1" <<'FREE'
import re, socket, sys
text = open(sys.argv[1]).read()
held = []
def free(found):
    held.append(socket.create_server(("127.0.0.1", 0)))
    return f'address = "127.0.0.1:{held[-1].getsockname()[1]}"'
text = text.replace("connect_timeout = 300.0", "connect_timeout = 30.0")  # nobody types here
text = re.sub(r'address = ".*"', free, text)
open(sys.argv[1], "w").write(text)
FREE
}

# start NAME OPTION...: one party, as in a terminal of its own
start() {
    local name=$1
    shift
    privinfer party "$name" --report "$name.json" "$@" >"$name.log" 2>&1 &
    started+=($!)
}

# finish NAME...: wait for all, print what their terminals would show, then the patient's answer
finish() {
    local failed=0 pid name
    for pid in "${started[@]}"; do
        wait "$pid" || failed=$?
    done
    started=()
    for name in "$@"; do
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
}
