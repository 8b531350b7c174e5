"""Merging of models without their data: simple, Fisher and RegMean (Jin et al., ICLR 2023).

store.py       model folders and statistics files, read tensor by tensor
collect.py     one pass over a model's training data: Gram matrices and Fisher information
merging.py     the three formulas, and the merge of whole models
ensembles.py   soft and hard ensembles, macro F1 of labels, F1 of entities
deltas.py      the same for adapter, LoRA and prefix over one frozen T5
domains.py     data sets with labels of their own, as rows of one model; scores over known labels
yesno.py       labels as questions that a T5 answers with yes or no
zoo.py         individual models, trained once, their statistics and logits
experiment.py  pairs and prefixes of models, in and out of domain: python -m pewe.fusion.experiment
tables.py      means over seeds, paired significance, score against number of models
__main__.py    merge model folders: python -m pewe.fusion --models A B --method regmean --output M
"""
