#!/usr/bin/env bash
# LogME similarity of every source prefix to every target. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
similarity prefix LogME "$@"
