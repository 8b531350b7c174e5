# Sourced by every script: stand in the repository root, choose the interpreter, name the embedded defaults.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# --help: what the script says of itself, then its flags with the values that it gives them. Nothing is installed.
help=""
for word in "$@"; do case "$word" in -h | --help) help=1 ;; esac; done
if [ -n "$help" ]; then
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  if [ "${FLAGS:-}" = none ]; then exit 0; fi
  echo
elif [ -n "${SETS_UP:-}" ] && [ -z "${PYTHON:-}" ]; then # a script that makes the environment itself
  bash scripts/setup_env.sh
fi

if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
"$PYTHON" -c "import pewe" || exit 2 # says what it lacks

# Idle threads spin briefly, then sleep: the next small operation finds them awake, and another process on the same cores is
# not starved (with the default of GNU OpenMP, runs side by side slow each other down many times).
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
# Freed memory is kept for the next tensors: with glibc's defaults every update of a stack asks for fresh pages.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-268435456}"

# The backbone, the data and the list of tasks are defaults of the flags (pewe/setting.py): the embedded ones, or the paper's:
#   PEWE_SETTING=paper bash scripts/adapter.sh

# What each script does, for a delta: the paper's settings are the defaults of the flags (docs/flags.md), those of a measure its
# own. Sources are in checkpoints/DELTA/full_data, few-shot deltas in checkpoints/DELTA/random. Further flags are passed on.
TUNING=(--do_train --do_predict --one_prefix)

tune() { # DELTA: tune on every task; where a checkpoint is only to be tested, nothing is tuned
  local do=("${TUNING[@]}") method="$1" random="checkpoints/$1/random" word
  for word in "$@"; do case "$word" in --test_checkpoint*) do=(--do_predict --one_prefix) ;; esac; done
  if [ $# = 1 ] && [ -z "${PEWE_SETTING:-}${MODEL:-}${DATA_DIR:-}" ]; then first "$method"; fi
  exec "$PYTHON" tune_hps_singletask.py "${do[@]}" --tune_method "$method" --output_dir "$random" "${@:2}"
}

# The original's README begins with this script, and takes the sources for granted. Typed alone, on the embedded default, it makes
# them first; many runs in lockstep have the same results sooner.
first() { # DELTA
  local all=("${TUNING[@]}" --tune_method "$1" --stack auto)
  echo "first the source deltas, on the full data of each task: checkpoints/$1/full_data" >&2
  "$PYTHON" tune_hps_singletask.py "${all[@]}" --full_train --output_dir "checkpoints/$1/full_data"
  echo "now few-shot deltas from a random init: checkpoints/$1/random" >&2
  exec "$PYTHON" tune_hps_singletask.py "${all[@]}" --output_dir "checkpoints/$1/random"
}

tune_all() { # DELTA: tune every source on every target
  exec "$PYTHON" tune_all_ckpt.py "${TUNING[@]}" --tune_method "$1" --stack auto --source_ckpt_path "checkpoints/$1/full_data" \
    --output_dir "checkpoints/$1/tuned_all" "${@:2}"
}

dev_all() { # DELTA: score every source on every target
  exec "$PYTHON" dev_all_ckpt.py --one_prefix --tune_method "$1" --stack auto --source_ckpt_path "checkpoints/$1/full_data" \
    --output_dir "checkpoints/$1/zero_shot" "${@:2}"
}

similarity() { # DELTA MEASURE: of every source to every target, by a measure of get_similarity/
  local deltas=(--tune_method "$1" --source_ckpt_path "checkpoints/$1/full_data")
  exec "$PYTHON" -m pewe similarity "$2" "${deltas[@]}" --output_dir "checkpoints/$1/similarity/$2" "${@:3}"
}

# PEMT's two stages, with the original's optimizer; --train_epochs, not --early_stop, ends a run.
PEMT=(--do_train --do_predict --optimizer adamw --lr_decay_style linear --max_grad_norm 1.0 --early_stop 1000 --one_prefix
  --max_input_length 256 --max_output_length 128)
PEMT_TARGET=(--tune_method pemt --learning_rate_list 3e-4 --warmup_steps 0 --train_epochs 20 --predict_batch_size 128
  --micro_batch_size 32 --seed 4096 --expert_path checkpoints/pemt/stage1)
