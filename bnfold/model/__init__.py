"""What a Keras model file is, without running any of it.

`container.open_model` reads a file into a `graph.Graph`; `ModelFile.save` writes a graph back into
a file of the same kind. Nothing here knows of folding or imports a deep-learning framework.
"""
