"""One module per process role, each a step function that reads as its data flow."""
