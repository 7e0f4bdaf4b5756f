"""
`python -m transformer_elmo.torchvision_stand_in`: a torchvision for AllenNLP to import.

AllenNLP imports torchvision, which a text library has no use for, and which must fit torch to the
version. What is in `files` is no part of this package, and not to be imported from here.
"""
