"""The measures by name. A new one is a script beside this file and an entry here."""

from get_similarity import (
    get_block,
    get_Cosine_of_Logits_and_Labels,
    get_EL2N,
    get_GraNd,
    get_KL_divergence,
    get_Loss,
    get_TextEmb,
)

MEASURES = {
    "Loss": get_Loss.MEASURE,
    "KL": get_KL_divergence.MEASURE,
    "EL2N": get_EL2N.MEASURE,
    "Cosine_of_Logits_and_Labels": get_Cosine_of_Logits_and_Labels.MEASURE,
    "GraNd": get_GraNd.MEASURE,
    "TextEmb": get_TextEmb.MEASURE,
    "block": get_block.MEASURE,
}
