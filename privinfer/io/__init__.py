"""How real data becomes tensors."""
