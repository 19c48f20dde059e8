"""One protocol a file, no network in them: what each party computes and what it sends."""
