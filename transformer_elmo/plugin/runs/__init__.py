"""
Training runs that survive: what AllenNLP's trainer is given around its steps. Nothing here replaces
AllenNLP's functions; `transformer_elmo.plugin.compat.training` puts it where it belongs.
"""
