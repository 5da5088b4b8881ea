"""The tables users write: the data set and the expert ratings, row by row, with every error in them."""
