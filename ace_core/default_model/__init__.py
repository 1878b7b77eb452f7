"""The embedded model that refuses: training, measuring and merging its adapter."""
