"""`cyclic evaluate`: what a model is worth on patients it has not seen, beside baselines in closed form."""
