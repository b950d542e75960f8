"""The script and the page of instructions that `tflite_export.android` writes."""

SCRIPT = r"""#!/bin/sh
# Runs every model of models/ on a phone with benchmark_model, through adb.
# Written by tflite_export; see README.md beside this file.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
benchmark=$here/benchmark_model
results=$here/results
remote=@REMOTE@
models='@MODELS@'
threads='@THREADS@'
runs=@RUNS@
serial=${ANDROID_SERIAL:-}
pause=5
again=no

fail() {
    printf 'run.sh: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --serial=*) serial=${1#*=} ;;
        --benchmark_model=*) benchmark=${1#*=} ;;
        --pause=*) pause=${1#*=} ;;
        --again) again=yes ;;
        --help)
            printf 'run.sh [--serial=ID] [--benchmark_model=FILE] [--pause=SECONDS] '
            printf '[--again]\n'
            exit 0
            ;;
        *) fail "unknown argument $1; see run.sh --help" ;;
    esac
    shift
done

# --- what there is ----------------------------------------------------------------

command -v adb >/dev/null 2>&1 ||
    fail 'there is no adb; install the Android SDK platform tools and put them on PATH'
[ -f "$benchmark" ] ||
    fail "there is no $benchmark; README.md says where Google offers it"

listed=$(adb devices </dev/null) || fail 'adb devices failed; is adb whole?'
listed=$(printf '%s\n' "$listed" | tr -d '\r' | sed '/^List of/d; /^\*/d; /^$/d')
phones=$(printf '%s\n' "$listed" | awk '$2 == "device" { print $1 }')
others=$(printf '%s\n' "$listed" | awk 'NF && $2 != "device" { print $1, "is", $2 }')
if [ -n "$serial" ]; then
    printf '%s\n' "$phones" | grep -qxF -e "$serial" ||
        fail "the phone $serial is not ready; adb knows of: ${listed:-no phone}"
elif [ -z "$phones" ] && [ -n "$others" ]; then
    fail "no phone is ready: $others; unlock it and allow USB debugging"
elif [ -z "$phones" ]; then
    fail 'no phone is connected; connect one by USB and switch on USB debugging'
elif [ "$(printf '%s\n' "$phones" | wc -l)" -gt 1 ]; then
    fail "several phones are connected: $(printf '%s' "$phones" | tr '\n' ' ');" \
        'choose one with --serial=ID or ANDROID_SERIAL'
else
    serial=$phones
fi
# adb reads it: from here on every call is for this phone.
ANDROID_SERIAL=$serial
export ANDROID_SERIAL

# --- on the phone -----------------------------------------------------------------

phone() {
    # adb shell would read the input of this script.
    adb shell "$1" </dev/null 2>&1 | tr -d '\r'
}

push() {
    adb push "$1" "$2" </dev/null >/dev/null ||
        fail "cannot push $1 to the phone; is it still connected, and has it room?"
}

cleanup() {
    adb shell "rm -rf $remote" </dev/null >/dev/null 2>&1 || :
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -p "$results"
phone "mkdir -p $remote"
push "$benchmark" "$remote/benchmark_model"
phone "chmod 755 $remote/benchmark_model"
{
    printf 'serial: %s\n' "$serial"
    for property in ro.product.manufacturer ro.product.model ro.soc.model \
        ro.product.cpu.abi ro.build.version.release; do
        printf '%s: %s\n' "$property" "$(phone "getprop $property")"
    done
    printf 'date: %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')"
} >"$results/device.txt"

# --- one run per model, backend and number of threads -----------------------------

# Models are in the innermost loop, so that a phone that grows warm is so for all.
run() {
    model=$1 backend=$2 count=$3 options=$4
    file=$results/$model.$backend.$count.txt
    # A result counts for this very model and these settings only.
    what="measured: $runs runs of $(cksum <"$here/models/$model.tflite")"
    if [ "$again" = no ] && grep -qxF "$what" "$file" 2>/dev/null; then
        printf '%s, %s, %s threads: there already\n' "$model" "$backend" "$count"
        return
    fi
    printf '%s, %s, %s threads\n' "$model" "$backend" "$count"
    push "$here/models/$model.tflite" "$remote/$model.tflite"
    phone "cd $remote && ./benchmark_model --graph=$model.tflite \
--num_threads=$count --num_runs=$runs --enable_op_profiling=true $options; \
echo exit status: \$?; rm -f $model.tflite" | tee "$file.part"
    # A phone that was unplugged leaves no last line; its output is no result.
    grep -q '^exit status: [0-9]' "$file.part" ||
        fail "the phone stopped answering; connect it and start again to continue"
    printf '%s\n' "$what" >>"$file.part"
    mv "$file.part" "$file"
    sleep "$pause"
}

for count in $threads; do
    for model in $models; do
        run "$model" cpu "$count" --use_xnnpack=true
    done
done
for model in $models; do
    run "$model" gpu 1 --use_gpu=true
done
printf 'results are in %s\n' "$results"
"""

README = """# Benchmarks on a phone

Written by `tflite_export`. `run.sh` pushes the models of `models/` and Google's
`benchmark_model` to a phone, runs each model on the CPU with @THREADS@ threads and
with the GPU delegate, and keeps the outputs in `results/`.

1. Get `benchmark_model` for Android on 64-bit Arm, which Google builds every night:
   `android_aarch64_benchmark_model`, the *native benchmark binary* of the page
   "Performance measurement" in the documentation of LiteRT (TensorFlow Lite). Save it
   here as `benchmark_model`, or name it with `--benchmark_model=FILE`.
2. Install adb (Android SDK platform tools). On the phone, switch on the developer
   options and USB debugging, connect it, and allow the computer to debug it.
3. `sh run.sh`. With several phones: `sh run.sh --serial=ID`, or set `ANDROID_SERIAL`.
   `adb devices` lists them. Stopped in between, it continues where it was;
   `--again` measures everything anew.
4. Parse the results:

       python -m tflite_export android parse .

   writes `report.csv` and `report.md` into this directory.

For numbers that can be compared, let the phone lie still with the screen off, charged
and cool. The script waits 5 seconds between two runs (`--pause=SECONDS`) and runs the
models in turn. Profiling is on, which costs a little time per operation. Nothing is
left on the phone.

| model | file | bytes |
|---|---|---|
@TABLE@
"""
