"""The measures by name. A new one is a script beside this file and an entry here.

A script is imported when its measure is asked for, not before, so that names cost nothing.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pewe.similarity.measure import Measure


class Measures(Mapping[str, "Measure"]):
    """Name -> the MEASURE of a script of this folder."""

    def __init__(self, **scripts: str):
        self.scripts = scripts

    def __getitem__(self, name: str) -> "Measure":
        return import_module(f"get_similarity.{self.scripts[name]}").MEASURE

    def __iter__(self) -> Iterator[str]:
        return iter(self.scripts)

    def __len__(self) -> int:
        return len(self.scripts)


MEASURES = Measures(
    Loss="get_Loss",
    KL="get_KL_divergence",
    EL2N="get_EL2N",
    Cosine_of_Logits_and_Labels="get_Cosine_of_Logits_and_Labels",
    GraNd="get_GraNd",
    TextEmb="get_TextEmb",
    Length="get_Length",
    TaskEmb="get_TaskEmb",
    LogME="get_LogME",
    block="get_block",
)
