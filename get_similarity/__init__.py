"""The measures by the names of scripts/get_similarity/: name -> (function of its configuration, configuration)."""

from functools import partial

from get_similarity import (
    get_block,
    get_Cosine_of_Logits_and_Labels,
    get_EL2N,
    get_GraNd,
    get_KL_divergence,
    get_Loss,
    get_TextEmb,
)
from pewe.similarity import SimilarityConfig, run

MEASURES = {
    "Loss": (partial(run, get_Loss.MEASURE), SimilarityConfig),
    "KL": (partial(run, get_KL_divergence.MEASURE), SimilarityConfig),
    "EL2N": (partial(run, get_EL2N.MEASURE), SimilarityConfig),
    "Cosine_of_Logits_and_Labels": (partial(run, get_Cosine_of_Logits_and_Labels.MEASURE), SimilarityConfig),
    "GraNd": (get_GraNd.run_mode, get_GraNd.GraNdConfig),
    "TextEmb": (get_TextEmb.run, get_TextEmb.TextEmbConfig),
    "block": (get_block.run_mode, get_block.BlockConfig),
}
