"""The tables users write: the data set and the expert ratings, row by row, with all their errors."""
