"""Build the paper's 51 tasks in CrossFit's text format from the Hugging Face hub, or from files on disk.

    python -m data.build                                     all tasks, seed 42, into data/crossfit
    python -m data.build --tasks boolq sciq --full           two tasks with their full train files
    python -m data.build --tasks pemt_task_list --full       PEMT's 23 tasks with the splits of its release
    python -m data.build --from_dir DIR                      from the data sets' own files, without network
    python -m data.build --report                            sources and licences
    python -m data.build --verify                            compare with the checksums

A task that is built already with equal settings is skipped, so a stopped command continues where it left off.
"""

from pewe.command import main

from data.build.run import BuildConfig, run

if __name__ == "__main__":
    main(run, BuildConfig, __doc__)
