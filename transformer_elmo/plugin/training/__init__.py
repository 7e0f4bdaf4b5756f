"""Training under AllenNLP: a run that is stopped anywhere goes on as if it never had been."""
