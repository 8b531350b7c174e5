#!/usr/bin/env bash
# LogME similarity of every source adapter to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity adapter LogME "$@"
