"""Maps and tables of fitted directions."""
