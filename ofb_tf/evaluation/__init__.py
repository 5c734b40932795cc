"""How good the model that served is, and what selection by its records will gain."""
