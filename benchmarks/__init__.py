"""Side-by-side measurements of privinfer and its peers; see README.md in this folder."""
