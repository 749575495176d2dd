"""Tables, figures and one HTML page, generated from the records of a sweep and from nothing else."""
