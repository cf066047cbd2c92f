#!/usr/bin/env bash
# The proof on a machine with an NVIDIA driver, Python and PyTorch, and no network, from what payload.sh packed:
#
#   bash run.sh PAYLOAD OUT [options of aivsreal-bench proof]
#
# PAYLOAD is the folder into which all parts (proof.part00 ...) were brought. PYTHON is the one that has PyTorch.
set -euo pipefail
payload=${1:?usage: run.sh PAYLOAD OUT [OPTION...]} out=${2:?usage: run.sh PAYLOAD OUT [OPTION...]}
shift 2
python=${PYTHON:-python3} work=${WORK:-$(mktemp -d)}
mkdir -p "$out" "$work/payload"
out=$(cd "$out" && pwd) payload=$(cd "$payload" && pwd)
begin=$(date +%s)
cat "$payload"/proof.part* | tar -x -C "$work/payload"
# Without pip of its own, which not every machine can give it; what the other Python has it finds through a .pth.
"$python" -m venv --without-pip "$work/venv"
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' >"$site/parent.pth"
install() {
    "$python" -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-index \
        --find-links "$work/payload/wheels" "$@" 2>&1 | tee -a "$out/install.txt"
}
install --no-deps --ignore-installed "$work"/payload/wheels/aivsreal-*.whl # whatever the other Python has of it
install aivsreal || echo "some of what it needs is missing; the steps that need it say so" >&2
echo "installed after $(($(date +%s) - begin)) s: $("$work/venv/bin/python" -c 'import aivsreal.runtime as r; print(r.__file__)')"
cd "$work"
exec "$work/venv/bin/aivsreal-bench" proof --payload "$work/payload" --work "$work" --out "$out" "$@"
