"""`cyclic evaluate`: measures a model on patients it was not trained on, and simple baselines for comparison."""
