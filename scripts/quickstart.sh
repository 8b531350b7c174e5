#!/usr/bin/env bash
# The main job on the embedded default, CPU only: source adapters of the mini gym, Loss similarity, ensembles, few-shot
# tuning from three inits, a table, a heat map. Every step resumes; a second call prints the table at once.
#
#   bash scripts/quickstart.sh                                        all tasks of the mini gym
#   bash scripts/quickstart.sh mini_read_towns mini_read_people ...   some tasks
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${PYTHON:-}" ] || bash scripts/setup_env.sh
source scripts/common.sh
source scripts/flow.sh

CKPT=checkpoints/quickstart OUT=results/quickstart
PICK=(--task_list "$TASKS")
[ $# -eq 0 ] || PICK=(--tasks "$@")
COMMON=(--device cpu --max_input_length 64 --max_output_length 8)
SCORING=("${COMMON[@]}")
TUNED=("${COMMON[@]}" --stack 12 --predict_batch_size 200 --max_grad_norm 1.0)
SOURCE=("${TUNED[@]}" --learning_rate_list 6e-3 --bsz_list 16 --train_iters 450 --valid_interval 90)
TARGET=("${TUNED[@]}" --learning_rate_list 3e-3 --bsz_list 8 --train_iters 80 --valid_interval 20)

SETTINGS="$* $(cat scripts/*.sh data/mini_gym/*/*.tsv "$MODEL/model.safetensors" | cksum)"
if [ "$(cat "$OUT/settings.txt" 2>/dev/null)" = "$SETTINGS" ]; then
  echo "made before (delete $OUT and $CKPT to start again):"
else
  flow
  printf '%s' "$SETTINGS" >"$OUT/settings.txt"
fi
cat "$OUT/table.txt"
echo "table, heat maps and weights: $OUT"
