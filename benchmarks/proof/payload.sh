#!/usr/bin/env bash
# What run.sh needs on a GPU machine without a network, in parts that are carried one by one: TARGET/1/proof.part00 and so on.
#
#   benchmarks/proof/payload.sh TARGET [FOLDER OF IMAGES]
#
# Needs PyPI, xz, and a Python with pip and setuptools here (PYTHON); about ten minutes for two versions of TensorRT-RTX on
# two cores, once: CACHE keeps what was downloaded and compressed. FOR is the Python of the other machine.
set -euo pipefail
target=${1:?usage: payload.sh TARGET [FOLDER OF IMAGES]} images=${2:-}
python=${PYTHON:-python3} for=${FOR:-3.12} cuda=${CUDA:-cu13} part=${PART:-34M} level=${LEVEL:--6}
# 1.4 checks at most when it is asked whether an engine is valid, 1.7 refuses other GPUs than those that it names.
rtx=${RTX-1.4.0.76 1.6.1.120} extra=${EXTRA-pycuda pytools platformdirs siphash24 mako markupsafe}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aivsreal-proof} stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$cache" "$stage/wheels"

fetch() { # FOLDER REQUIREMENT: a wheel for the other machine, or else the source
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$1" --only-binary=:all: \
        --python-version "$for" --implementation cp --abi "cp${for/./}" --abi abi3 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        --platform any "$2" ||
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --dest "$1" "$2"
}

for version in $rtx; do
    archive=$cache/rtx-$version-$cuda-$for.tar.xz
    if [ ! -f "$archive" ]; then
        site=$stage/rtx-$version
        mkdir -p "$site/tensorrt_rtx"
        fetch "$stage/$version" "tensorrt-rtx-$cuda-libs==$version"
        fetch "$stage/$version" "tensorrt-rtx-$cuda-bindings==$version"
        for wheel in "$stage/$version"/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
        printf 'from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n' \
            >"$site/tensorrt_rtx/__init__.py"
        tar -C "$site" -c . | xz -T2 "$level" >"$archive.new"
        mv "$archive.new" "$archive"
        rm -rf "$site" "${stage:?}/$version"
    fi
    cp "$archive" "$stage/rtx-$version.tar.xz"
done
for name in $extra; do fetch "$stage/wheels" "$name"; done
# From a copy: a build folder left in the checkout would put modules into the wheel that are gone.
mkdir "$stage/source"
tar -C "$root" -c pyproject.toml README.md LICENSE runtime train export benchmarks | tar -C "$stage/source" -x
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$stage/wheels" \
    "$stage/source"
rm -rf "$stage/source"
if [ -n "$images" ]; then
    mkdir "$stage/images"
    # Spread evenly over the folder; 256 of those in the repository's usual test data are 7 MB.
    find "$images" -type f \( -name '*.jpg' -o -name '*.png' -o -name '*.webp' \) | sort |
        awk '{ all[NR] = $0 } END { for (i = 0; i < 256 && i < NR; i++) print all[1 + int(i * NR / 256)] }' |
        while read -r file; do cp "$file" "$stage/images/$(echo "${file#"$images"/}" | tr / -)"; done
fi
cp "$here/run.sh" "$stage/"
rm -rf "$target"
mkdir -p "$target"
tar -C "$stage" -c . | split -d -b "$part" - "$target/proof.part"
number=0
for file in "$target"/proof.part*; do
    number=$((number + 1))
    mkdir "$target/$number"
    mv "$file" "$target/$number/"
done
du -sb "$target"/*
