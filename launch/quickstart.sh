#!/usr/bin/env bash
# From raw text to a trained and exported model on this machine, in minutes and without a download.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/quickstart.sh [--small] [--out DIR]

Builds a corpus from three packages of Python's own standard library, trains a tokenizer on it,
packs it, trains training/recipes/quickstart.yaml on 2 processes (ZeRO-3, sequence parallelism 2,
EntroDrop on), exports, evaluates, generates a line of code and draws the run. With GPUs it trains
in bf16 on two of them, or on the one that there is without sequence parallelism.

  --small     fewer files, a smaller model, 2 epochs: to see that everything works
  --out DIR   put data/ and runs/ there instead of into the repository

Run again, it keeps a finished corpus, resumes an interrupted run, and starts a finished run from
scratch. It never removes a run folder that it has not created.
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 1
}

size="" out=""
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --small) size="-small" ;;
        --out) out=$(realpath -m -- "${2:?--out needs a folder}")/ && shift ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
cd -- "$REPO_ROOT"
if ((NUM_GPUS == 0)) && [[ -e /sys/class/net/lo ]]; then
    # As in local.sh, for the evaluation as well.
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
fi

recipe=training/recipes/quickstart.yaml
corpus=${out}data/quickstart$size
run_dir=${out}runs/quickstart$size
overrides=("data.corpus=$corpus" "run_dir=$run_dir")
num_processes=2 devices="2 processes"
if ((NUM_GPUS)); then
    devices="2 GPUs"
    # In bf16 it meets what a real run does there: flash attention, kernels, NCCL.
    overrides+=(deepspeed=ds_configs/zero3_whole.json)
fi
if ((NUM_GPUS == 1)); then
    num_processes=1 devices="1 GPU"
    overrides+=(train.sequence_parallel_size=1)
fi
if [[ -n $size ]]; then
    packages=(json tomllib wsgiref zoneinfo) vocab_size=512 sequence_tokens=128
    overrides+=(
        "data.sequence_tokens=$sequence_tokens" train.global_batch_tokens=4096 train.epochs=2
        optimizer.lr=0.01
        model.config.hidden_size=64 model.config.head_dim=16 model.config.intermediate_size=128
        model.config.num_hidden_layers=1 evaluation.every_steps=10 checkpoint.every_steps=20
    )
else
    packages=(asyncio concurrent json) vocab_size=2048
    sequence_tokens=$(sed -n 's/^ *sequence_tokens: *//p' "$recipe")
fi

stage_number=0
stage() {
    stage_number=$((stage_number + 1))
    printf '\n[%d/7] %s (at %d s)\n' "$stage_number" "$1" "$SECONDS"
}

run_python() {
    "$PYTHON" -m "$@"
}

stage "Corpus: ${packages[*]} of Python's standard library"
if [[ -f $corpus/manifest.json ]]; then
    echo "$corpus is complete; kept"
else
    stdlib=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
    run_python data_prep build --input "${packages[@]/#/$stdlib/}" --include '*.py' \
        --exclude test --exclude tests --exclude __pycache__ --train-tokenizer bpe \
        --vocab-size "$vocab_size" --val-frac 0.2 --workers "$NUM_CORES" --out "$corpus"
fi

stage "Samples of $sequence_tokens tokens, and a check of every file"
if [[ ! -d $corpus/pack-$sequence_tokens ]]; then
    run_python data_prep pack "$corpus" --seq-len "$sequence_tokens"
fi
run_python data_prep verify "$corpus" --deep

stage "Training on $devices"
if [[ -e $run_dir ]]; then
    [[ -f $run_dir/.quickstart ]] || fail "$run_dir was not made by the quickstart; move it away"
    if [[ $(<"$run_dir/.quickstart") == finished ]]; then
        echo "$run_dir is finished; starting again from scratch"
        rm -rf -- "$run_dir"
    else
        echo "$run_dir was interrupted; resuming from its newest checkpoint"
    fi
fi
mkdir -p "$run_dir"
echo unfinished >"$run_dir/.quickstart"
launch/local.sh "$recipe" -n "$num_processes" "${overrides[@]}"

stage "Export to a Hugging Face folder, loaded again and compared"
TQDM_DISABLE=1 run_python training export "$run_dir"

stage "Evaluation of the export"
run_python training evaluate "$run_dir"

stage "A line of code from the export, with plain transformers"
TQDM_DISABLE=1 run_python training generate "$run_dir/export" --prompt "    def __init__(self,"

stage "Report"
run_python training report "$run_dir"
echo finished >"$run_dir/.quickstart"

shown_python=${PYTHON#"$REPO_ROOT"/}
cat <<TEXT

Done in $SECONDS s.

Where things are
  $corpus    shards, tokenizer, pack index
  $run_dir    metrics.jsonl, checkpoints, export, report

What to look at
  $run_dir/report/index.html    losses, entropy bands, drop rate; open it in a browser
  $shown_python -m tensorboard.main --logdir $run_dir/tensorboard
  $shown_python -m data_prep inspect $corpus --seq-len $sequence_tokens --sample 0

What to run next
  The same without EntroDrop, and both in one report:
    launch/local.sh $run_dir/recipe.resolved.yaml run_dir=$run_dir-plain regulariser=none
    $shown_python -m training report $run_dir $run_dir-plain --out $run_dir-compared
  Your own text: docs/data_format.md. Every key of a recipe: docs/recipes.md.
TEXT
