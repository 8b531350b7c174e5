#!/usr/bin/env bash
# The main job on the embedded default, CPU only: source adapters of the mini gym, Loss similarity, ensembles, few-shot
# tuning from three inits, a table, a heat map. Every step resumes; a second call prints the table at once.
#
#   bash scripts/quickstart.sh                              all tasks of the mini gym
#   bash scripts/quickstart.sh mini_closed_towns mini_...   some tasks (at least three)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -n "${PYTHON:-}" ] || bash scripts/setup_env.sh
source scripts/common.sh

CKPT=checkpoints/quickstart OUT=results/quickstart
PICK=()
[ $# -eq 0 ] || PICK=(--tasks "$@")
COMMON=(--device cpu --max_input_length 64 --max_output_length 8 --max_grad_norm 1.0 --stack 12 --predict_batch_size 100)
SOURCE=("${COMMON[@]}" --full_train --learning_rate_list 3e-3 --bsz_list 32 --micro_batch_size 32 --train_iters 400 --valid_interval 200)
TARGET=("${COMMON[@]}" --learning_rate_list 1e-3 --bsz_list 8 --train_iters 100 --valid_interval 25 --early_stop 3)

SETTINGS="${PICK[*]} ${SOURCE[*]} ${TARGET[*]} $(cat scripts/quickstart.sh data/mini_gym/*/*.tsv "$MODEL"/*.safetensors | cksum)"
if [ "$(cat "$OUT/settings.txt" 2>/dev/null)" = "$SETTINGS" ]; then
  cat "$OUT/table.txt"
  echo "(made before; results/quickstart, delete it to start again)"
  exit 0
fi

step() { printf '\n== %s\n' "$*"; }
step "1/5 source adapters on the full data of every task"
bash scripts/adapter.sh "${SOURCE[@]}" "${PICK[@]}" --output_dir $CKPT/full_data
step "2/5 Loss similarity of every source to every target"
bash scripts/get_similarity/adapter_Loss.sh --device cpu --max_input_length 64 --max_output_length 8 "${PICK[@]}" \
  --source_ckpt_path $CKPT/full_data --output_dir $CKPT/similarity
step "3/5 ensembles: average of the other tasks, weighted by Loss"
"$PYTHON" unit_model/unit_model_average.py --task_list "$TASKS" "${PICK[@]}" --source_ckpt_path $CKPT/full_data --save_ckpt_path $CKPT/average
"$PYTHON" unit_model/unit_model_others.py --origin_data_path $CKPT/similarity --source_ckpt_path $CKPT/full_data --save_ckpt_path $CKPT/Loss
step "4/5 few-shot tuning of every target from three inits"
bash scripts/adapter.sh "${TARGET[@]}" "${PICK[@]}" --output_dir $CKPT/from_random
for init in average Loss; do
  bash scripts/adapter.sh "${TARGET[@]}" "${PICK[@]}" --output_dir $CKPT/from_$init --train_checkpoint $CKPT/$init
done
step "5/5 test scores by init"
mkdir -p $OUT
"$PYTHON" -m pewe.tables --rows Random=$CKPT/from_random Average=$CKPT/from_average Loss=$CKPT/from_Loss --out $OUT >$OUT/table.txt
cp $CKPT/Loss/hot_pic_all.png $CKPT/Loss/final_weight.tsv $OUT/
cp $CKPT/similarity/result.tsv $OUT/loss_similarity.tsv
printf '%s' "$SETTINGS" >$OUT/settings.txt
cat $OUT/table.txt
echo "heat map, weights and table: $OUT"
