"""Export a checkpoint as a bundle of artifacts, each compared with the model it was made from."""
