"""How a graph is evaluated under a protocol family: one package a family, one module a role."""
