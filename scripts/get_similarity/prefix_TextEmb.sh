#!/usr/bin/env bash
# TextEmb similarity of the texts of every source to those of every target: no delta takes part. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity prefix TextEmb "$@"
