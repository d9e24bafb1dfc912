"""What stands around the experts: a whole decoder layer, a whole model, a deployment of GPUs."""
