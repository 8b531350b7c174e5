#!/usr/bin/env bash
# Cosine of Logits and Labels of every source prefix to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity prefix Cosine_of_Logits_and_Labels "$@"
