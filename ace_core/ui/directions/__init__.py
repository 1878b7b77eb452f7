"""The Directions tab: fit, choose, inspect, exchange, and use in a run."""
