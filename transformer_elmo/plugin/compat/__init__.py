"""
Patches of AllenNLP, one module a concern: configs and overrides, archives, training, what is shown
of errors, and allennlp-models beside this package. `transformer_elmo.plugin.patches` lists them
all.
"""
