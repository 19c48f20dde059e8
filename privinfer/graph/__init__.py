"""What is computed: the graph, its import from torch and ONNX, its ranges, its fixed-point form."""
