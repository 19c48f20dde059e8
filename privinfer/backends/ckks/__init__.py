"""Threshold CKKS: owners and the patient's agent hold shares of one key; the model owner evaluates."""
