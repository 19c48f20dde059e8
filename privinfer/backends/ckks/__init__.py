"""Threshold CKKS: the model owner evaluates under a joint key of all key holders."""
