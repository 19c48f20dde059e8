"""Threshold CKKS: owners and the patient's agent hold shares of one key; formats shared with SEAL and TenSEAL."""
