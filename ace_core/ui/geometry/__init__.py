"""The Geometry tab: what every method does to real activations, moved in the browser."""
