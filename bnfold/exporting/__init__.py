"""The steps of an export: find the network, convert it, clean the graph, set the opset, check the result."""
